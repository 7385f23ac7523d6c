"""What others see of models that this crate wrote.

`outside.py models FOLDER` writes the node tests of the `onnx` package as FOLDER/NAME.onnx.
`outside.py compare REPORT` reads lines ORIGINAL TAB REWRITTEN, checks each rewritten model by `onnx.checker` and runs it in ONNX Runtime
beside its original on the same inputs (those of the node test of its name, else random ones), without and with the
library's own optimisations. REPORT: {"compared": [file, …], "differ": [text, …], "unable": {file: reason}}.
"""
import json
import pathlib
import sys
import warnings
import zlib

import numpy as np
import onnx
import onnxruntime
from onnx.backend.test.loader import load_node_model_tests

# The node tests divide by zero on purpose while they are made.
warnings.simplefilter("ignore")
# Sizes of open dimensions, by the names that models give them; 1 for others.
SIZES = {"sequence": 512, "seq": 16, "tokens": 16}
VALUES = {"sr": 16000}
LEVELS = [onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL]


def cases():
    for case in load_node_model_tests():
        if case.model is not None:
            yield case


def models(folder):
    for case in cases():
        onnx.save(case.model, folder / f"{case.name}.onnx")


def random_inputs(name, session):
    random = np.random.default_rng(zlib.crc32(name.encode()))
    kinds = {"float": np.float32, "double": np.float64, "int64": np.int64, "int32": np.int32, "bool": np.bool_}
    given = {}
    for port in session.get_inputs():
        shape = [d if isinstance(d, int) else SIZES.get(d, 1) for d in port.shape]
        kind = kinds[port.type.removeprefix("tensor(").removesuffix(")")]
        if port.name in VALUES:
            given[port.name] = np.full(shape, VALUES[port.name], kind)
        elif not np.issubdtype(kind, np.floating):
            given[port.name] = random.integers(0, 2, shape).astype(kind)
        else:
            given[port.name] = random.random(shape).astype(kind)
    return given


def plain(value):
    """A value as something that compares by its bits."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        data = value.tolist() if value.dtype == object else value.tobytes()
        return (str(value.dtype), value.shape, data)
    return value


class Unable(Exception):
    """The original does not run here."""


def run(path, level, inputs):
    onnxruntime.set_seed(7)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = level
    if level == LEVELS[0]:
        # Packed constant weights are summed in another order, so a weight that is computed is compared unpacked.
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    given = inputs(session)
    if isinstance(given, list):
        given = {i.name: v for i, v in zip(onnx_inputs(path), given) if i.name in names or v is not None}
    result = session.run(None, given)
    return [(o.name, plain(v)) for o, v in zip(session.get_outputs(), result)]


def onnx_inputs(path):
    return onnx.load(path, load_external_data=False).graph.input


def compare_one(original, rewritten, data):
    name = original.stem
    onnx.checker.check_model(str(rewritten))
    inputs = (lambda session: data[name]) if name in data else (lambda session: random_inputs(name, session))
    for level in LEVELS:
        try:
            expected = run(original, level, inputs)
            again = run(original, level, inputs)
        except Exception as error:
            raise Unable(str(error).splitlines()[0][:200]) from error
        if expected != again:
            raise Unable("differs from itself")
        if run(rewritten, level, inputs) != expected:
            raise AssertionError(f"outputs differ at {level}")


def as_input(value):
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value


def compare(report, originals, rewritten):
    data = {c.name: [as_input(v) for v in c.data_sets[0][0]] for c in cases() if c.data_sets}
    result = {"compared": [], "differ": [], "unable": {}}
    for original, written in zip(originals, rewritten, strict=True):
        try:
            compare_one(original, written, data)
            result["compared"].append(written.name)
        except Unable as why:
            result["unable"][written.name] = str(why)
        except Exception as error:
            result["differ"].append(f"{written.name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
    report.write_text(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1] == "models":
        models(pathlib.Path(sys.argv[2]))
    else:
        # Thousands of paths do not fit on a command line: they come as lines, originals and rewritten in pairs.
        pairs = [line.rstrip("\n").split("\t") for line in sys.stdin]
        compare(pathlib.Path(sys.argv[2]), [pathlib.Path(a) for a, _ in pairs], [pathlib.Path(b) for _, b in pairs])
