"""Writes models that break one rule of ONNX each: `broken.py FOLDER` makes FOLDER/NAME.onnx and FOLDER/verdicts.json,
{name: what `onnx.checker` says, null where it lets the model pass}. `sound` breaks none.
"""
import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

node, value = helper.make_node, helper.make_tensor_value_info


def base():
    """Initialiser, sparse initialiser, constant, branch, function and a chain of nodes."""
    w = numpy_helper.from_array(np.ones(4, np.float32), "w")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(2, np.float32), "s"), numpy_helper.from_array(np.array([0, 3]), "si"), [4])
    branch = lambda op, out: helper.make_graph([node(op, ["b"], [out])], out, [], [value(out, 1, [4])])
    nodes = [
        node("Add", ["x", "w"], ["a"], "add"),
        node("Relu", ["a"], ["b"], "relu"),
        node("If", ["c"], ["d"], "if", then_branch=branch("Neg", "t"), else_branch=branch("Abs", "e")),
        node("Twice", ["d"], ["f"], "call", domain="local"),
        node("Gemm", ["g", "g"], ["h"], "gemm", alpha=2.0, transB=1),
        node("Mul", ["f", "s"], ["y"], "mul"),
    ]
    inputs = [value("x", 1, [4]), value("c", TensorProto.BOOL, []), value("g", 1, [2, 2])]
    outputs = [value("y", 1, [4]), value("h", 1, [2, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [w], sparse_initializer=[sparse])
    twice = helper.make_function("local", "Twice", ["p"], ["q"], [node("Add", ["p", "p"], ["q"])], [helper.make_opsetid("", 17)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[twice], ir_version=8)


def raw(name, kind, dims, data):
    return TensorProto(name=name, data_type=kind, dims=dims, raw_data=data)


def put(target, **fields):
    for name, new in fields.items():
        setattr(target, name, new)


def external(t, **entries):
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        t.external_data.add(key=key, value=text)


def replaced(messages, *new):
    del messages[:]
    messages.extend(new)


def sparse(m):
    return m.graph.sparse_initializer[0]


def branch(m):
    return m.graph.node[2].attribute[0].g


def attribute(m, **fields):
    a = m.graph.node[4].attribute[0]
    a.Clear()
    put(a, name="alpha", **fields)
    return a


indices = lambda m, array: sparse(m).indices.CopyFrom(numpy_helper.from_array(np.array(array), "si"))
RULES = {
    "sound": lambda m: None,
    "model_without_ir_version": lambda m: m.ClearField("ir_version"),
    "model_without_opset": lambda m: m.ClearField("opset_import"),
    "model_without_graph": lambda m: m.ClearField("graph"),
    "model_ir_version_of_the_future": lambda m: put(m, ir_version=99),
    "model_metadata_twice": lambda m: m.metadata_props.extend([onnx.StringStringEntryProto(key="k", value="v")] * 2),
    "model_opset_twice": lambda m: m.opset_import.extend([helper.make_opsetid("", 16)]),
    "graph_without_name": lambda m: m.graph.ClearField("name"),
    "graph_input_without_name": lambda m: m.graph.input[2].ClearField("name"),
    "graph_input_twice": lambda m: m.graph.input.append(m.graph.input[0]),
    "graph_input_without_type": lambda m: m.graph.input[0].ClearField("type"),
    "graph_input_without_element_type": lambda m: m.graph.input[0].type.tensor_type.ClearField("elem_type"),
    "graph_input_without_shape": lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
    "graph_output_without_type": lambda m: m.graph.output[0].ClearField("type"),
    "graph_output_of_nothing": lambda m: put(m.graph.output[0], name="nothing"),
    "graph_unsorted": lambda m: replaced(m.graph.node, *list(m.graph.node)[::-1]),
    "graph_value_twice": lambda m: m.graph.node[1].output.__setitem__(0, "a"),
    "graph_value_like_input": lambda m: m.graph.node[4].output.__setitem__(0, "x"),
    "graph_name_of_around_in_branch": lambda m: branch(m).node[0].output.__setitem__(0, "a"),
    "branch_without_name": lambda m: branch(m).ClearField("name"),
    "branch_output_from_around": lambda m: put(branch(m).output[0], name="b"),
    "branch_uses_nothing": lambda m: branch(m).node[0].input.__setitem__(0, "nothing"),
    "initializer_without_name": lambda m: m.graph.initializer.append(raw("", 1, [1], bytes(4))),
    "initializer_twice": lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    "initializer_of_old_file_no_input": lambda m: put(m, ir_version=3),
    "initializer_like_sparse": lambda m: m.graph.initializer.append(raw("s", 1, [1], bytes(4))),
    "tensor_without_type": lambda m: m.graph.initializer[0].ClearField("data_type"),
    "tensor_of_unknown_type": lambda m: put(m.graph.initializer[0], data_type=99),
    "tensor_too_short": lambda m: put(m.graph.initializer[0], raw_data=bytes(12)),
    "tensor_too_long": lambda m: put(m.graph.initializer[0], raw_data=bytes(20)),
    "tensor_negative": lambda m: m.graph.initializer[0].dims.__setitem__(0, -4),
    "tensor_in_two_fields": lambda m: m.graph.initializer[0].float_data.extend([1] * 4),
    "tensor_in_no_field": lambda m: m.graph.initializer[0].ClearField("raw_data"),
    "tensor_in_wrong_field": lambda m: (m.graph.initializer[0].ClearField("raw_data"), m.graph.initializer[0].int64_data.extend([1] * 4)),
    "tensor_empty_with_data": lambda m: m.graph.initializer[0].dims.__setitem__(0, 0),
    "tensor_overflows": lambda m: replaced(m.graph.initializer[0].dims, 2**62, 2**62),
    "tensor_raw_strings": lambda m: put(m.graph.initializer[0], data_type=TensorProto.STRING),
    "external_without_location": lambda m: external(m.graph.initializer[0], offset="0"),
    "external_and_inside": lambda m: (external(m.graph.initializer[0], location="w.bin"), put(m.graph.initializer[0], raw_data=bytes(16))),
    "external_above": lambda m: external(m.graph.initializer[0], location="../w.bin"),
    "external_absolute": lambda m: external(m.graph.initializer[0], location="/w.bin"),
    "external_missing": lambda m: external(m.graph.initializer[0], location="missing.bin"),
    "sparse_without_indices": lambda m: sparse(m).ClearField("indices"),
    "sparse_without_shape": lambda m: sparse(m).ClearField("dims"),
    "sparse_of_rank_2": lambda m: replaced(sparse(m).values.dims, 2, 1),
    "sparse_unsorted": lambda m: indices(m, [3, 0]),
    "sparse_twice": lambda m: indices(m, [3, 3]),
    "sparse_outside": lambda m: indices(m, [0, 4]),
    "sparse_negative": lambda m: indices(m, [-1, 0]),
    "sparse_rows_outside": lambda m: indices(m, [[0], [4]]),
    "sparse_rows_too_wide": lambda m: indices(m, [[0, 0], [3, 0]]),
    "sparse_too_few": lambda m: indices(m, [0]),
    "sparse_int32": lambda m: sparse(m).indices.CopyFrom(numpy_helper.from_array(np.array([0, 3], np.int32), "si")),
    "node_without_type": lambda m: m.graph.node[0].ClearField("op_type"),
    "node_alone": lambda m: m.graph.node.append(onnx.NodeProto(op_type="Relu")),
    "node_of_unknown_operator": lambda m: put(m.graph.node[1], op_type="Nothing"),
    "node_of_unknown_domain": lambda m: put(m.graph.node[1], domain="nowhere"),
    "node_of_retired_operator": lambda m: put(m.graph.node[1], op_type="Upsample"),
    "node_with_too_many_inputs": lambda m: m.graph.node[1].input.append("x"),
    "node_with_too_few_inputs": lambda m: m.graph.node[0].input.pop(),
    "node_with_unknown_attribute": lambda m: m.graph.node[1].attribute.append(helper.make_attribute("nothing", 1)),
    "node_without_needed_attribute": lambda m: m.graph.node[2].attribute.pop(),
    "attribute_twice": lambda m: m.graph.node[4].attribute.append(m.graph.node[4].attribute[0]),
    "attribute_without_name": lambda m: m.graph.node[4].attribute[0].ClearField("name"),
    "attribute_without_type": lambda m: m.graph.node[4].attribute[0].ClearField("type"),
    "attribute_of_other_type": lambda m: attribute(m, f=1.0, type=AttributeProto.INT),
    "attribute_of_two_values": lambda m: attribute(m, f=1.0, i=1, type=AttributeProto.FLOAT),
    "attribute_of_operators_other_type": lambda m: attribute(m, i=1, type=AttributeProto.INT),
    "attribute_refers_outside_function": lambda m: attribute(m, ref_attr_name="k", type=AttributeProto.FLOAT),
    "attribute_tensor_too_short": lambda m: m.graph.node.append(node("Constant", [], ["z"], value=raw("z", 1, [4], bytes(3)))),
    "function_domain_not_imported": lambda m: m.opset_import.pop(),
    "function_without_name": lambda m: m.functions[0].ClearField("name"),
    "function_without_domain": lambda m: m.functions[0].ClearField("domain"),
    "function_twice": lambda m: m.functions.append(m.functions[0]),
    "function_without_opset": lambda m: m.functions[0].ClearField("opset_import"),
    "function_of_other_opset": lambda m: put(m.functions[0].opset_import[0], version=6),
    "function_input_twice": lambda m: m.functions[0].input.append("p"),
    "function_output_twice": lambda m: m.functions[0].output.append("q"),
    "function_output_of_nothing": lambda m: m.functions[0].output.append("nothing"),
    "function_attribute_twice": lambda m: m.functions[0].attribute.extend(["k", "k"]),
    "function_uses_nothing": lambda m: m.functions[0].node[0].input.__setitem__(0, "nothing"),
    "function_value_twice": lambda m: m.functions[0].node.append(m.functions[0].node[0]),
    "function_reference_with_value": lambda m: m.functions[0].node.append(
        onnx.NodeProto(op_type="Elu", input=["q"], output=["r"],
                       attribute=[AttributeProto(name="alpha", ref_attr_name="k", f=1.0, type=AttributeProto.FLOAT)])),
    "function_calls_itself": lambda m: (m.functions[0].opset_import.append(helper.make_opsetid("local", 1)),
                                        m.functions[0].node.append(node("Twice", ["q"], ["r"], domain="local"))),
}


def main(folder):
    verdicts = {}
    for name, damage in RULES.items():
        model = base()
        damage(model)
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            onnx.checker.check_model(str(path))
            verdicts[name] = None
        except Exception as error:
            verdicts[name] = str(error)[:200] or type(error).__name__
    (folder / "verdicts.json").write_text(json.dumps(verdicts))


main(pathlib.Path(sys.argv[1]))
