"""Models for the wire and for memory: next to no arithmetic, or next to nothing but weights."""
import numpy as np
from onnx import TensorProto

from builder import FLOAT, Builder

# Name on the wire (Open Inference Protocol) and element type.
WIRE_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def identity(dtype=FLOAT, shape=("batch", 16)):
    g = Builder(0)
    g.node("Identity", "INPUT0", to="OUTPUT0")
    return g.model("identity", [("INPUT0", dtype, list(shape))], [("OUTPUT0", dtype, list(shape))])


def add_sub():
    """Sum and difference of two tensors of 16 integers."""
    g = Builder(0)
    g.node("Add", "INPUT0", "INPUT1", to="OUTPUT0")
    g.node("Sub", "INPUT0", "INPUT1", to="OUTPUT1")
    port = lambda name: (name, TensorProto.INT32, ["batch", 16])
    return g.model("add_sub", [port("INPUT0"), port("INPUT1")], [port("OUTPUT0"), port("OUTPUT1")])


def scale(factor: float):
    """OUTPUT0 = factor × INPUT0: tells one version from another."""
    g = Builder(0)
    g.node("Mul", "INPUT0", g.constant(np.float32(factor)), to="OUTPUT0")
    port = lambda name: (name, FLOAT, ["batch", 4])
    return g.model("scale", [port("INPUT0")], [port("OUTPUT0")])


def perceptron(width: int, layers: int):
    """`layers` square matrices: 4 × width² × layers bytes of weights."""
    g = Builder(layers)
    x = "INPUT0"
    for layer in range(layers):
        x = g.node("Relu", g.linear(x, width, width), to="OUTPUT0" if layer == layers - 1 else None)
    port = lambda name: (name, FLOAT, ["batch", width])
    return g.model("perceptron", [port("INPUT0")], [port("OUTPUT0")])
