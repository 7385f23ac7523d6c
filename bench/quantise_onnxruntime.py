"""ONNX Runtime's static quantiser as its documentation has it: `quantise_onnxruntime.py MODEL INPUTS.npz OUTPUT`.

Pre-processed (shape inference, fusions), per channel, QDQ, unsigned activations, signed weights, min-max. Prints seconds.
"""
import pathlib
import sys
import tempfile
import time

import numpy as np
import onnx
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    def __init__(self, path: str, batch: int):
        arrays = dict(np.load(path))
        count = len(next(iter(arrays.values()))) // batch
        self.left = iter([{n: a[i * batch:(i + 1) * batch] for n, a in arrays.items()} for i in range(count)])

    def get_next(self):
        return next(self.left, None)


def main(model: str, inputs: str, output: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ready = str(pathlib.Path(folder) / "ready.onnx")
        loaded = onnx.load(model)
        began = time.perf_counter()
        if max(o.version for o in loaded.opset_import if o.domain in ("", "ai.onnx")) < 13:
            loaded = version_converter.convert_version(loaded, 13)
        raised = str(pathlib.Path(folder) / "raised.onnx")
        onnx.save(loaded, raised)
        quant_pre_process(raised, ready)
        first = loaded.graph.input[0].type.tensor_type.shape.dim[0]
        quantize_static(ready, output, Reader(inputs, max(first.dim_value, 1)), quant_format=QuantFormat.QDQ,
                        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    print(time.perf_counter() - began)


main(*sys.argv[1:])
