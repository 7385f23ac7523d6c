"""kserve's inference clients over REST and gRPC: `kserve_client.py HTTP_ADDRESS GRPC_ADDRESS`."""
import asyncio
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

X = np.arange(32, dtype=np.float32).reshape(2, 16) / 7
WORDS = np.array([[f"wörd {i}".encode() for i in range(16)]], dtype=np.object_)


def request(binary, model="ident", data=X, datatype="FP32", **more):
    tensor = InferInput("INPUT0", list(data.shape), datatype)
    tensor.set_data_from_numpy(data, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="7", **more)


def same(answer, data=X):
    # Over JSON strings come as text, else as bytes.
    text = np.vectorize(lambda v: v.decode() if isinstance(v, bytes) else v)
    got = answer.outputs[0].as_numpy()
    np.testing.assert_array_equal(*((text(got), text(data)) if data is WORDS else (got, data)))
    assert answer.id == "7" and answer.model_name.startswith("ident") and answer.model_version in (None, "1"), answer


async def over_rest(rest, base):
    assert await rest.is_server_live(base) and await rest.is_server_ready(base)
    assert await rest.is_model_ready(base, "ident")
    for binary in (False, True):
        same(await rest.infer(base, request(binary), model_name="ident"))
        same(await rest.infer(base, request(binary, "ident_str", WORDS, "BYTES"), model_name="ident_str"), WORDS)
    half = X.astype(np.float16)
    same(await rest.infer(base, request(True, "ident_f16", half, "FP16"), model_name="ident_f16"), half)
    flags = X > 2
    same(await rest.infer(base, request(False, "ident_bool", flags, "BOOL"), model_name="ident_bool"), flags)
    asked = [RequestedOutput("OUTPUT0", {"binary_data": True})]
    same(await rest.infer(base, request(False, request_outputs=asked), model_name="ident"))
    # Plain JSON goes through as it stands.
    row = {"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": list(range(16))}
    headers = {}
    answer = await rest.infer(base, {"inputs": [row]}, model_name="ident", response_headers=headers)
    assert answer.outputs[0].as_numpy().tolist() == [list(range(16))], answer
    assert headers["content-type"] == "application/json", headers
    for wrong, model, status in (
        (request(True, "nobody"), "nobody", 404),
        (request(True, data=X[:, :8].copy()), "ident", 400),
        (request(True, data=X.astype(np.int32), datatype="INT32"), "ident", 400),
    ):
        try:
            await rest.infer(base, wrong, model_name=model)
        except httpx.HTTPStatusError as e:
            assert e.response.status_code == status and e.response.json()["error"], e.response.text
        else:
            raise AssertionError(f"{model} is not refused")
    try:
        ready = await rest.is_model_ready(base, "nobody")
    except httpx.HTTPStatusError as e:
        assert e.response.status_code == 404
    else:
        assert not ready
    # The first version of the protocol has explanations; this server speaks the second.
    try:
        await rest.explain(base, "ident", {"instances": []})
    except Exception as e:
        assert "Unsupported protocol" in str(e), e
    else:
        raise AssertionError("an explanation came")
    answer = httpx.get(f"{base}/v2/models/ident").json()
    assert answer["inputs"] == [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, 16]}], answer
    assert httpx.get(f"{base}/v2").json()["name"] == "edgeward"


async def over_grpc(address):
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    client = InferenceGRPCClient(url=address)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("ident")
    for binary in (False, True):
        same(await client.infer(request(binary)))
        same(await client.infer(request(binary, "ident_str", WORDS, "BYTES")), WORDS)
    same(await client.infer(request(True), timeout=30, headers=[("x-mine", "1")]))
    assert not await client.is_model_ready("nobody")
    for wrong, code in (
        (request(True, "nobody"), grpc.StatusCode.NOT_FOUND),
        (request(True, data=X[:, :8].copy()), grpc.StatusCode.INVALID_ARGUMENT),
        (request(False, data=X.astype(np.int32), datatype="INT32"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        try:
            await client.infer(wrong)
        except grpc.RpcError as e:
            assert e.code() == code and e.details(), e
        else:
            raise AssertionError(f"{code} is not the answer")
    await client.close()
    # What the client has no method for, by the stub that it brings along.
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "edgeward"
        assert list((await stub.ModelMetadata(pb.ModelMetadataRequest(name="ident"))).inputs[0].shape) == [-1, 16]
        unloaded = await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="ident_bool"))
        assert (unloaded.model_name, unloaded.isUnloaded) == ("ident_bool", True)
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="ident_bool"))).ready
        loaded = await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="ident_bool"))
        assert (loaded.model_name, loaded.isLoaded) == ("ident_bool", True)
        assert (await stub.ModelReady(pb.ModelReadyRequest(name="ident_bool"))).ready


async def main(http, grpc_address):
    rest = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30, retries=0))
    await over_rest(rest, f"http://{http}")
    await rest.close()
    await over_grpc(grpc_address)


asyncio.run(main(sys.argv[1], sys.argv[2]))
print("ok")
