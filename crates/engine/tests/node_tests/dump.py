"""Writes the backend node tests of the `onnx` package as one index and one file of bytes: `dump.py FOLDER`.

The package makes these tests in memory. Tests whose inputs or outputs are no dense tensors are named with the reason.
"""
import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_node_model_tests


class Blob:
    def __init__(self, path):
        self.file = open(path, "wb")
        self.at = 0

    def add(self, data: bytes):
        place = [self.at, len(data)]
        # Aligned, so that a reader may lend the bytes to an engine as they are.
        padded = data + bytes(-len(data) % 64)
        self.file.write(padded)
        self.at += len(padded)
        return place


class NoTensor(Exception):
    pass


def tensor(blob: Blob, name: str, value):
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    if not isinstance(value, (np.ndarray, np.generic)):
        raise NoTensor(type(value).__name__)
    proto = numpy_helper.from_array(np.asarray(value))
    entry = {"name": name, "dtype": proto.data_type, "shape": list(proto.dims)}
    if proto.data_type == onnx.TensorProto.STRING:
        return entry | {"strings": [s.decode() for s in proto.string_data]}
    return entry | {"at": blob.add(proto.raw_data)}


def entry(blob: Blob, case):
    result = {"name": case.name, "rtol": case.rtol, "atol": case.atol}
    graph = case.model.graph
    if other := [p.name for p in [*graph.input, *graph.output] if not p.type.HasField("tensor_type")]:
        return result | {"skip": f"`{other[0]}` is no tensor"}
    named = lambda ports, values: [tensor(blob, p.name, v) for p, v in zip(ports, values, strict=False)]
    try:
        sets = [{"inputs": named(graph.input, i), "outputs": named(graph.output, o)} for i, o in case.data_sets]
    except NoTensor as kind:
        return result | {"skip": f"a value is a {kind}"}
    return result | {"model": blob.add(case.model.SerializeToString()), "sets": sets}


def main(folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    blob = Blob(folder / "data.bin")
    cases = [entry(blob, case) for case in sorted(load_node_model_tests(), key=lambda case: case.name)]
    blob.file.close()
    part = folder / ".index.part"
    part.write_text(json.dumps({"onnx": onnx.__version__, "cases": cases}))
    part.replace(folder / "index.json")


main(pathlib.Path(sys.argv[1]))
