"""A GPT-like graph of random weights, and prompts for it: `big_model.py FOLDER [LAYERS WIDTH VOCABULARY]`.

Writes model.onnx with its data in model.onnx.data, tensor by tensor, and prompts.npz. Without numbers it has 24 layers of width 2048 and a vocabulary
of 50,000: 1.3 billion parameters, 5.3 GB. The table of the words' vectors is the matrix of the scores as well, as in GPT-2.
"""
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper

HEAD = 128
POSITIONS = 128
PROMPTS, WORDS = 8, 16
PAGE = 4096


class Graph:
    def __init__(self, data):
        self.data, self.random = data, np.random.default_rng(0)
        self.nodes, self.constants, self.count = [], [], 0

    def weight(self, name, *shape):
        """A tensor of the data file, its rows drawn a part at a time."""
        self.data.write(bytes(-self.data.tell() % PAGE))
        offset = self.data.tell()
        rows = max(1, (16 << 20) // int(np.prod(shape[1:])))
        for first in range(0, shape[0], rows):
            part = self.random.standard_normal((min(rows, shape[0] - first), *shape[1:]), np.float32) * np.float32(0.02)
            self.data.write(part.tobytes())
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", pathlib.Path(self.data.name).name), ("offset", offset),
                           ("length", self.data.tell() - offset)):
            tensor.external_data.add(key=key, value=str(value))
        self.constants.append(tensor)
        return name

    def constant(self, name, values):
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"v{self.count}_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"{op}_{self.count}", **attributes))
        return names[0] if outputs == 1 else names

    def normalised(self, value, name, width):
        scale = self.constant(f"{name}.scale", np.ones(width, np.float32))
        shift = self.constant(f"{name}.shift", np.zeros(width, np.float32))
        return self.node("LayerNormalization", value, scale, shift, axis=-1)

    def linear(self, value, name, inputs, outputs):
        bias = self.constant(f"{name}.bias", np.zeros(outputs, np.float32))
        return self.node("Add", self.node("MatMul", value, self.weight(f"{name}.weight", inputs, outputs)), bias)

    def attention(self, value, name, width, mask):
        heads = width // HEAD
        apart = self.constant(f"{name}.apart", np.array([0, 0, 3, heads, HEAD]))
        together = self.constant(f"{name}.together", np.array([0, 0, width]))
        split = self.node("Reshape", self.linear(value, f"{name}.qkv", width, 3 * width), apart)
        parts = self.node("Split", self.node("Transpose", split, perm=[2, 0, 3, 1, 4]), "threes", outputs=3, axis=0)
        query, key, values = [self.node("Squeeze", part, "first_axis") for part in parts]
        scores = self.node("MatMul", query, self.node("Transpose", key, perm=[0, 1, 3, 2]))
        weights = self.node("Softmax", self.node("Add", self.node("Mul", scores, "head_scale"), mask), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", weights, values), perm=[0, 2, 1, 3])
        return self.linear(self.node("Reshape", mixed, together), f"{name}.out", width, width)

    def gelu(self, value):
        half = self.node("Mul", value, "half")
        return self.node("Mul", half, self.node("Add", self.node("Erf", self.node("Mul", value, "root_half")), "one"))


def model(graph, layers, width, vocabulary):
    number = lambda name, value: graph.constant(name, np.float32(value))
    number("half", 0.5), number("one", 1.0), number("root_half", 0.5 ** 0.5), number("head_scale", HEAD ** -0.5)
    graph.constant("threes", np.ones(3, np.int64)), graph.constant("first_axis", np.array([0]))
    graph.constant("zero", np.array([0])), graph.constant("zeros", np.array([0, 0]))
    graph.constant("mask_axes", np.array([2, 3])), graph.constant("last", np.array(-1))
    later = np.triu(np.full((POSITIONS, POSITIONS), -1e9, np.float32), 1)
    graph.constant("later", later.reshape(1, 1, POSITIONS, POSITIONS))
    length = graph.node("Shape", "ids", start=1, end=2)
    words = graph.node("Gather", graph.weight("words", vocabulary, width), "ids")
    places = graph.node("Slice", graph.weight("places", POSITIONS, width), "zero", length, "zero")
    mask = graph.node("Slice", "later", "zeros", graph.node("Concat", length, length, axis=0), "mask_axes")
    value = graph.node("Add", words, places)
    for layer in range(layers):
        name = f"layer{layer}"
        mixed = graph.attention(graph.normalised(value, f"{name}.first", width), f"{name}.attention", width, mask)
        value = graph.node("Add", value, mixed)
        wide = graph.linear(graph.normalised(value, f"{name}.second", width), f"{name}.up", width, 4 * width)
        value = graph.node("Add", value, graph.linear(graph.gelu(wide), f"{name}.down", 4 * width, width))
    ends = graph.node("Gather", graph.normalised(value, "end", width), "last", axis=1)
    graph.nodes.append(helper.make_node("Gemm", [ends, "words"], ["scores"], "scores", transB=1))
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", vocabulary])]
    made = helper.make_graph(graph.nodes, "big", inputs, outputs, graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main(folder, layers="24", width="2048", vocabulary="50000"):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "model.onnx.data", "wb") as data:
        made = model(Graph(data), int(layers), int(width), int(vocabulary))
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    prompts = np.random.default_rng(1).integers(0, int(vocabulary), (PROMPTS, WORDS))
    np.savez(folder / "prompts.npz", ids=prompts)


main(*sys.argv[1:])
