"""Writes the seed corpus beside this file: `python seeds.py` (needs `onnx`). One small model per feature of the format."""
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OUT = pathlib.Path(__file__).parent / "seeds/model"
X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)


def write(name, nodes, initializers=(), inputs=(X,), outputs=(Y,), functions=(), opset=17, **more):
    graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), list(initializers), **more)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)
    (OUT / f"{name}.onnx").write_bytes(model.SerializeToString())


OUT.mkdir(parents=True, exist_ok=True)
node = helper.make_node
w = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
write("gemm", [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], [w])
typed = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
write("typed", [node("Add", ["x", "w"], ["y"])], [typed])
external = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
for key, value in [("location", "w.bin"), ("offset", "0"), ("length", "16")]:
    external.external_data.add(key=key, value=value)
write("external", [node("Add", ["x", "w"], ["y"])], [external])
sparse = helper.make_sparse_tensor(
    numpy_helper.from_array(np.ones(2, np.float32), "s"), numpy_helper.from_array(np.array([0, 3]), "i"), [4])
write("sparse", [node("Add", ["x", "s"], ["y"])], sparse_initializer=[sparse])
branch = lambda name, op: helper.make_graph([node(op, ["x"], [name])], name, [], [helper.make_tensor_value_info(name, 1, None)])
cond = helper.make_tensor("c", TensorProto.BOOL, [], [True])
write("if", [node("If", ["c"], ["y"], then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg"))], [cond])
twice = helper.make_function("local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)])
write("function", [node("Twice", ["x"], ["y"], domain="local")], functions=[twice])
shape = [node("Shape", ["x"], ["s"]), node("Constant", [], ["i"], value_int=0), node("Gather", ["s", "i"], ["d"]),
         node("Constant", [], ["m"], value_ints=[-1]), node("Constant", [], ["z"], value_ints=[0]),
         node("Unsqueeze", ["d", "z"], ["d1"]), node("Concat", ["d1", "m"], ["to"], axis=0), node("Reshape", ["x", "to"], ["y"])]
write("shape", shape)
for kind in [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.UINT2, TensorProto.FLOAT8E4M3FN]:
    bits = {TensorProto.INT4: 4, TensorProto.UINT2: 2, TensorProto.FLOAT8E4M3FN: 8}.get(kind, 16)
    raw = TensorProto(name="w", data_type=kind, dims=[4], raw_data=bytes(-(-4 * bits // 8)))
    write(f"type{kind}", [node("Identity", ["w"], ["y"])], [raw])
strings = helper.make_tensor("w", TensorProto.STRING, [2], [b"a", b"bc"])
write("strings", [node("Identity", ["w"], ["y"])], [strings])
conv = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "w")
image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])
write("conv", [node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])], [conv], inputs=[image])
