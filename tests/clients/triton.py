"""tritonclient over HTTP and gRPC against a running server: `triton.py HTTP_ADDRESS GRPC_ADDRESS`.

Expects the identity models that the caller puts into the repository: `ident` (FP32), `ident_str`, `ident_f16`, `ident_bool`.
"""
import asyncio
import queue
import sys

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

X = np.arange(32, dtype=np.float32).reshape(2, 16) / 7


def make(kind, data, datatype, binary=True):
    tensor = kind.InferInput("INPUT0", list(data.shape), datatype)
    tensor.set_data_from_numpy(data, **({"binary_data": binary} if kind is http else {}))
    return [tensor]


def refused(call, text):
    try:
        call()
    except InferenceServerException as e:
        assert text in str(e), str(e)
        return
    raise AssertionError(f"no error about {text}")


def common(client, kind):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("ident")
    assert not client.is_model_ready("nobody")
    result = client.infer("ident", make(kind, X, "FP32"), request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), X)
    np.testing.assert_array_equal(client.infer("ident", make(kind, X, "FP32"), model_version="1").as_numpy("OUTPUT0"), X)
    half = X.astype(np.float16)
    np.testing.assert_array_equal(client.infer("ident_f16", make(kind, half, "FP16")).as_numpy("OUTPUT0"), half)
    flags = X > 2
    np.testing.assert_array_equal(client.infer("ident_bool", make(kind, flags, "BOOL")).as_numpy("OUTPUT0"), flags)
    words = np.array([[f"wörd {i}".encode() for i in range(16)]], dtype=np.object_)
    np.testing.assert_array_equal(client.infer("ident_str", make(kind, words, "BYTES")).as_numpy("OUTPUT0"), words)
    top = client.infer("ident", make(kind, X, "FP32"), outputs=[kind.InferRequestedOutput("OUTPUT0", class_count=2)])
    assert [s.decode().split(":")[1] for s in top.as_numpy("OUTPUT0")[0]] == ["15", "14"]
    refused(lambda: client.infer("nobody", make(kind, X, "FP32")), "nobody")
    refused(lambda: client.infer("ident", make(kind, X, "FP32"), model_version="9"), "9")
    wrong = make(kind, X[:, :8].copy(), "FP32")
    refused(lambda: client.infer("ident", wrong), "INPUT0")
    refused(lambda: client.infer("ident", make(kind, X.astype(np.int32), "INT32")), "INPUT0")
    refused(lambda: client.load_model("nobody"), "nobody")
    client.unload_model("ident_bool")
    assert not client.is_model_ready("ident_bool")
    client.load_model("ident_bool")
    assert client.is_model_ready("ident_bool")
    client.load_model("ident_bool", config='{"max_batch_size": 1}')
    refused(lambda: client.infer("ident_bool", make(kind, flags, "BOOL")), "batch")
    refused(lambda: client.load_model("ident_bool", config='{"sequence_batching": {}}'), "sequence_batching")
    client.load_model("ident_bool")
    settings(client)


def settings(client):
    """Trace and log settings; as JSON over both protocols, where gRPC's own form wraps each value."""
    as_json = {"as_json": True} if isinstance(client, grpc.InferenceServerClient) else {}

    def plain(answer):
        if not as_json:
            return answer
        one = lambda v: v.get("value", []) if "value" in v or not v else next(iter(v.values()))
        return {k: one(v) for k, v in answer["settings"].items()}

    def trace(model=None, **updates):
        call = client.update_trace_settings if updates else client.get_trace_settings
        more = {"settings": updates} if updates else {}
        return plain(call(model_name=model, **more, **as_json))

    only = lambda value: value[0] if isinstance(value, list) else value
    assert trace()["trace_level"] == ["OFF"] and only(trace()["trace_rate"]) == "1000", trace()
    assert trace("ident", trace_level=["TIMESTAMPS"], trace_rate="1", trace_count="3")["trace_level"] == ["TIMESTAMPS"]
    kind = grpc if as_json else http
    client.infer("ident", make(kind, X, "FP32"))
    assert only(trace("ident")["trace_count"]) == "2", trace("ident")
    assert trace()["trace_level"] == ["OFF"] and trace("ident_f16")["trace_level"] == ["OFF"]
    cleared = trace("ident", trace_level=None, trace_rate=None, trace_count=None)
    assert cleared == trace(), cleared
    refused(lambda: trace(trace_rate="never"), "trace_rate")
    refused(lambda: trace("nobody"), "nobody")
    before = plain(client.get_log_settings(**as_json))
    assert before["log_info"] is True and before["log_verbose_level"] == 0, before
    after = plain(client.update_log_settings({"log_info": False, "log_verbose_level": 1}, **as_json))
    assert after == {**before, "log_info": False, "log_verbose_level": 1}, after
    assert plain(client.update_log_settings({"log_info": True, "log_verbose_level": 0}, **as_json)) == before
    refused(lambda: client.update_log_settings({"log_file": "/f"}), "log_file")


def over_http(address):
    client = http.InferenceServerClient(address, concurrency=4)
    common(client, http)
    np.testing.assert_array_equal(client.infer("ident", make(http, X, "FP32", binary=False), outputs=[http.InferRequestedOutput("OUTPUT0", binary_data=False)]).as_numpy("OUTPUT0"), X)
    for algorithm in ("gzip", "deflate"):
        result = client.infer("ident", make(http, X, "FP32"), request_compression_algorithm=algorithm, response_compression_algorithm=algorithm)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), X)
    waiting = [client.async_infer("ident", make(http, X + i, "FP32")) for i in range(20)]
    for i, request in enumerate(waiting):
        np.testing.assert_array_equal(request.get_result().as_numpy("OUTPUT0"), X + i)
    assert client.get_server_metadata()["name"] == "edgeward"
    metadata = client.get_model_metadata("ident")
    assert metadata["inputs"] == [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, 16]}], metadata
    assert client.get_model_config("ident")["input"][0]["data_type"] == "TYPE_FP32"
    assert {"name": "ident", "version": "1", "state": "READY", "reason": ""} in client.get_model_repository_index()
    stats = client.get_inference_statistics("ident")["model_stats"][0]
    assert int(stats["inference_count"]) > 20 and stats["inference_stats"]["success"]["count"] > 20, stats


def over_grpc(address):
    client = grpc.InferenceServerClient(address)
    common(client, grpc)
    client.infer("ident", make(grpc, X, "FP32"), compression_algorithm="gzip")
    assert client.get_server_metadata().name == "edgeward"
    assert list(client.get_model_metadata("ident").inputs[0].shape) == [-1, 16]
    assert client.get_model_config("ident").config.input[0].name == "INPUT0"
    assert any(m.name == "ident" and m.state == "READY" for m in client.get_model_repository_index().models)
    assert client.get_inference_statistics("ident").model_stats[0].inference_count > 0
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(50):
        client.async_stream_infer("nobody" if i == 25 else "ident", make(grpc, X + i, "FP32"), request_id=str(i))
    for i in range(50):
        result, error = answers.get(timeout=30)
        if i == 25:
            assert error is not None and "nobody" in str(error)
        else:
            assert error is None, error
            assert result.get_response().id == str(i)
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), X + i)
    client.stop_stream()
    # A stream that asks for it is told that each answer is the last of its request.
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("ident", make(grpc, X, "FP32"), enable_empty_final_response=True)
    result, error = answers.get(timeout=30)
    assert error is None and result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


async def asynchronous(http_address, grpc_address):
    for kind, module, address in ((http, http_aio, http_address), (grpc, grpc_aio, grpc_address)):
        async with module.InferenceServerClient(address) as client:
            results = await asyncio.gather(*(client.infer("ident", make(kind, X + i, "FP32")) for i in range(10)))
            for i, result in enumerate(results):
                np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), X + i)


over_http(sys.argv[1])
over_grpc(sys.argv[2])
asyncio.run(asynchronous(sys.argv[1], sys.argv[2]))
print("ok")
