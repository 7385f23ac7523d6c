"""Triton's clients over mutual TLS, whose certificate is revoked under an open stream. Arguments: HTTP, gRPC, folder."""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

http, grpc, folder = sys.argv[1:]
roots, certificate, key = f"{folder}/roots.pem", f"{folder}/ward.pem", f"{folder}/ward.key"
values = np.arange(16, dtype=np.float32).reshape(1, 16)

over_http = triton_http.InferenceServerClient(
    http, ssl=True, ssl_options={"ca_certs": roots, "certfile": certificate, "keyfile": key}
)
tensor = triton_http.InferInput("INPUT0", [1, 16], "FP32")
tensor.set_data_from_numpy(values)
assert (over_http.infer("ident", [tensor]).as_numpy("OUTPUT0") == values).all()
assert over_http.is_server_ready()

over_grpc = triton_grpc.InferenceServerClient(
    grpc, ssl=True, root_certificates=roots, certificate_chain=certificate, private_key=key
)
tensor = triton_grpc.InferInput("INPUT0", [1, 16], "FP32")
tensor.set_data_from_numpy(values)
assert (over_grpc.infer("ident", [tensor]).as_numpy("OUTPUT0") == values).all()
try:
    over_grpc.unload_model("ident")
    sys.exit("a caller without that permission unloaded a model")
except triton_grpc.InferenceServerException as refused:
    assert "PERMISSION_DENIED" in str(refused), refused

answers = queue.Queue()
over_grpc.start_stream(lambda result, error: answers.put((result, error)))
over_grpc.async_stream_infer("ident", [tensor])
result, error = answers.get(timeout=20)
assert error is None and (result.as_numpy("OUTPUT0") == values).all(), error
print("stream is open", flush=True)
result, error = answers.get(timeout=20)
print("cut:", error.message(), flush=True)
