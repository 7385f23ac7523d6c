"""Every public method of tritonclient's four clients, each called at least once: `triton_methods.py HTTP_ADDRESS GRPC_ADDRESS`.

Which methods there are is asked of the client, so that a new version's new method fails here. `CALLS` says of each what its
answer holds; `REFUSED` what the server refuses and why. Expects the models of `triton.py`.
"""
import asyncio
import base64
import inspect
import queue
import sys

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient._auth import BasicAuth
from tritonclient.utils import InferenceServerException

X = np.arange(32, dtype=np.float32).reshape(2, 16) / 7
LOOP = asyncio.new_event_loop()

# Method: arguments, and a text of its answer.
CALLS = {
    "is_server_live": ((), "True"),
    "is_server_ready": ((), "True"),
    "is_model_ready": (("ident",), "True"),
    "get_server_metadata": ((), "edgeward"),
    "get_model_metadata": (("ident",), "INPUT0"),
    "get_model_config": (("ident",), "TYPE_FP32"),
    "get_model_repository_index": ((), "ident_f16"),
    "load_model": (("ident_f16",), "None"),
    "unload_model": (("ident_bool",), "None"),
    "get_inference_statistics": ((), "inference_count"),
    "get_trace_settings": ((), "trace_level"),
    "update_trace_settings": (("ident", {"trace_rate": "7"}), "7"),
    "get_log_settings": ((), "log_verbose_level"),
    "update_log_settings": (({"log_verbose_level": 0},), "log_info"),
    "get_system_shared_memory_status": ((), ""),
    "get_cuda_shared_memory_status": ((), ""),
    "unregister_system_shared_memory": ((), "None"),
    "unregister_cuda_shared_memory": ((), "None"),
}
REFUSED = {
    "register_system_shared_memory": (("region", "/key", 64), "shared memory is not supported"),
    "register_cuda_shared_memory": (("region", base64.b64encode(b"handle"), 0, 64), "shared memory is not supported"),
}
# Called in a way of their own below.
OTHERS = {"close", "infer", "async_infer", "generate_request_body", "parse_response_body", "register_plugin", "plugin",
          "unregister_plugin", "start_stream", "async_stream_infer", "stop_stream", "stream_infer"}


def awaited(answer):
    return LOOP.run_until_complete(answer) if inspect.isawaitable(answer) else answer


def inputs(kind, data=X):
    tensor = kind.InferInput("INPUT0", list(data.shape), "FP32")
    tensor.set_data_from_numpy(data)
    return [tensor]


def same(result):
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), X)


def inferences(client, kind):
    """`infer` with every option that it has."""
    options = dict(request_id="7", sequence_id=5, sequence_start=True, sequence_end=True, priority=1, timeout=10_000_000,
                   parameters={"mine": "x", "flag": True, "number": 3}, headers={"x-mine": "1"})
    result = awaited(client.infer("ident", inputs(kind), model_version="1", **options))
    same(result)
    answer = str(result.get_response())
    assert all(name in answer for name in ("sequence_id", "sequence_start", "sequence_end")), answer
    assert "sequence_id" not in str(awaited(client.infer("ident", inputs(kind))).get_response())
    same(awaited(client.infer("ident", inputs(kind), outputs=[kind.InferRequestedOutput("OUTPUT0")])))
    # An identifier of a sequence may be a text.
    same(awaited(client.infer("ident", inputs(kind), sequence_id="five")))
    if kind is grpc:
        same(awaited(client.infer("ident", inputs(kind), client_timeout=30, compression_algorithm="gzip")))
    else:
        for algorithm in ("gzip", "deflate"):
            options = dict(request_compression_algorithm=algorithm, response_compression_algorithm=algorithm)
            same(awaited(client.infer("ident", inputs(kind), query_params={"a": 1}, **options)))
    for parameters in ({"triton_mine": 1}, {"triton_final_response": True}):
        try:
            # The clients have the rule too; a client without it is told by the server, see `reserved` in `messages.rs`.
            awaited(client.infer("ident", inputs(kind), parameters=parameters))
        except InferenceServerException as e:
            assert "triton_" in str(e) or "reserved" in str(e), e
        else:
            raise AssertionError(f"{parameters} are taken")


def bodies(client, address):
    """The two halves of an inference over HTTP, with a connection of one's own between them."""
    import http.client

    body, length = client.generate_request_body(inputs(sys.modules["tritonclient.http"]))
    connection = http.client.HTTPConnection(address)
    headers = {"Inference-Header-Content-Length": str(length)} if length else {}
    connection.request("POST", "/v2/models/ident/infer", body, headers)
    answer = connection.getresponse()
    length = answer.getheader("Inference-Header-Content-Length")
    same(client.parse_response_body(answer.read(), header_length=length and int(length)))


def streams(client):
    answers = queue.Queue()
    client.async_infer("ident", inputs(grpc), lambda result, error: answers.put((result, error)))
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("ident", inputs(grpc), sequence_id=3, sequence_start=True, enable_empty_final_response=True)
    for _ in range(2):
        result, error = answers.get(timeout=60)
        assert error is None, error
        same(result)
    client.stop_stream()


async def asynchronous_streams(client):
    async def requests():
        for number in range(3):
            yield {"model_name": "ident", "inputs": inputs(grpc), "request_id": str(number)}

    seen = 0
    async for result, error in client.stream_infer(requests()):
        assert error is None and result.get_response().id == str(seen), error
        same(result)
        seen += 1
    assert seen == 3


def every(kind, module, address):
    if module in (http_aio, grpc_aio):
        async def made():
            return module.InferenceServerClient(address)

        client = LOOP.run_until_complete(made())
    else:
        client = module.InferenceServerClient(address)
    public = {name for name, _ in inspect.getmembers(type(client), inspect.isfunction) if not name.startswith("_")}
    unknown = public - CALLS.keys() - REFUSED.keys() - OTHERS
    assert not unknown, f"{module.__name__} has methods that no test calls: {unknown}"
    for name, (arguments, text) in CALLS.items():
        answer = awaited(getattr(client, name)(*arguments))
        assert text in str(answer), f"{module.__name__}.{name}: {answer}"
    awaited(client.load_model("ident_bool", config='{"max_batch_size": 4}'))
    assert awaited(client.is_model_ready("ident_bool"))
    for name, (arguments, text) in REFUSED.items():
        try:
            answer = awaited(getattr(client, name)(*arguments))
        except InferenceServerException as e:
            assert text in str(e), f"{module.__name__}.{name}: {e}"
        else:
            raise AssertionError(f"{module.__name__}.{name} is not refused: {answer}")
    for name in ("get_system_shared_memory_status", "unregister_system_shared_memory"):
        awaited(getattr(client, name)("region"))
    plugin = BasicAuth("user", "password")
    client.register_plugin(plugin)
    assert client.plugin() is plugin
    inferences(client, kind)
    client.unregister_plugin()
    if kind is http:
        bodies(client, address)
    if module is http:
        same(client.async_infer("ident", inputs(http)).get_result())
    elif module is grpc:
        streams(client)
    elif module is grpc_aio:
        LOOP.run_until_complete(asynchronous_streams(client))
    awaited(client.close())


for kind, module, address in ((http, http, 1), (http, http_aio, 1), (grpc, grpc, 2), (grpc, grpc_aio, 2)):
    every(kind, module, sys.argv[address])
print("ok")
