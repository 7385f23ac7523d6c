"""Checks models with onnx and runs them with ONNX Runtime."""
import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime

found = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {}
    for value in session.get_inputs():
        shape = [3 if isinstance(size, str) else size for size in value.shape]
        count = int(np.prod(shape))
        kind = np.int64 if "int64" in value.type else np.float32
        values = np.arange(count) % 7 + 1 if kind == np.int64 else np.sin(np.arange(count))
        inputs[value.name] = (np.minimum(values, 1) if "mask" in value.name else values).reshape(shape).astype(kind)
    found[path.stem] = session.run(None, inputs)[0].tolist()
json.dump(found, sys.stdout)
