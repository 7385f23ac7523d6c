"""kserve's inference clients over REST and gRPC: `kserve_client.py HTTP_ADDRESS GRPC_ADDRESS`."""
import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

X = np.arange(32, dtype=np.float32).reshape(2, 16) / 7


def request(binary):
    tensor = InferInput("INPUT0", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X, binary_data=binary)
    return InferRequest(model_name="ident", infer_inputs=[tensor], request_id="7")


async def main(http, grpc):
    rest = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30, retries=0))
    base = f"http://{http}"
    assert await rest.is_server_live(base) and await rest.is_server_ready(base)
    assert await rest.is_model_ready(base, "ident")
    for binary in (False, True):
        answer = await rest.infer(base, request(binary), model_name="ident")
        np.testing.assert_array_equal(answer.outputs[0].as_numpy(), X)
        assert answer.id == "7"
    client = InferenceGRPCClient(url=grpc)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("ident")
    for binary in (False, True):
        answer = await client.infer(request(binary))
        np.testing.assert_array_equal(answer.outputs[0].as_numpy(), X)
    await client.close()


asyncio.run(main(sys.argv[1], sys.argv[2]))
print("ok")
