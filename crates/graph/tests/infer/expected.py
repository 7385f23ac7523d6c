"""What onnx's own shape inference finds: `expected.py FOLDER MODEL.onnx …`; the node tests of the `onnx` package are added, and
written into the folder.

FOLDER/expected.json: [{"file", "values": {name: [element type, [size or null, …] or null]}}, …]
"""
import json
import pathlib
import sys

import onnx
from onnx import shape_inference
from onnx.backend.test.loader import load_node_model_tests

folder, models = pathlib.Path(sys.argv[1]), sys.argv[2:]
for case in load_node_model_tests():
    if case.model is not None:
        # What the test declares would hide what is inferred.
        for output in case.model.graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
        onnx.save(case.model, folder / f"{case.name}.onnx")
        models.append(str(folder / f"{case.name}.onnx"))
found = []
for file in models:
    model = onnx.load(file)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if not 7 <= opset <= 23:
        continue
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except Exception:
        continue
    values = {}
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        if value.type.HasField("tensor_type"):
            tensor = value.type.tensor_type
            dims = None
            if tensor.HasField("shape"):
                dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            values[value.name] = [tensor.elem_type, dims]
    found.append({"file": file, "values": values})
(folder / "expected.json").write_text(json.dumps(found))
