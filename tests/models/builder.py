"""Writes ONNX graphs node by node, with weights that follow from a seed.

What is built, layer by layer, is in the modules beside this one.
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64


class Builder:
    """A graph under construction. Methods return the name of the tensor that they add."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.nodes = []
        self.initializers = []
        self.count = 0

    def constant(self, values: np.ndarray) -> str:
        self.count += 1
        name = f"c{self.count}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def normal(self, shape, scale: float) -> str:
        return self.constant(self.random.standard_normal(shape, dtype=np.float32) * np.float32(scale))

    def node(self, op: str, *inputs: str, to: str | None = None, **attributes) -> str:
        self.count += 1
        name = to or f"t{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], f"{op}_{self.count}", **attributes))
        return name

    def cast(self, x: str, dtype: int) -> str:
        # `to` is the attribute's name, and the keyword of `node` for the output's.
        self.count += 1
        self.nodes.append(helper.make_node("Cast", [x], [f"t{self.count}"], f"Cast_{self.count}", to=dtype))
        return f"t{self.count}"

    def linear(self, x: str, wide: int, out: int, scale: float | None = None) -> str:
        weights = self.normal((wide, out), scale or (1.0 / wide) ** 0.5)
        return self.node("Add", self.node("MatMul", x, weights), self.normal((out,), 0.02))

    def conv(self, x: str, channels: int, out: int, kernel: int, stride=1, groups=1, gain=1.0, to=None) -> str:
        """A convolution with He initialisation and the bias that a folded batch normalisation leaves."""
        fan_in = channels // groups * kernel * kernel
        weights = self.normal((out, channels // groups, kernel, kernel), gain * (2.0 / fan_in) ** 0.5)
        return self.node(
            "Conv",
            x,
            weights,
            self.normal((out,), 0.02),
            to=to,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
            group=groups,
        )

    def model(self, name: str, inputs, outputs) -> onnx.ModelProto:
        """`inputs` and `outputs`: (name, element type, shape) each."""
        value = lambda port: helper.make_tensor_value_info(*port)
        graph = helper.make_graph(self.nodes, name, [*map(value, inputs)], [*map(value, outputs)], self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgeward-tests")
