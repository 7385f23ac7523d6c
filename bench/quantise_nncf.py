"""NNCF's post-training quantisation as its documentation has it: `quantise_nncf.py MODEL INPUTS.npz OUTPUT [transformer]`.

One row of the inputs is one sample, all of them are used. Prints seconds.
"""
import logging
import sys
import time
import warnings

import numpy as np
import onnx
from onnx import version_converter

warnings.filterwarnings("ignore")
import nncf  # noqa: E402

nncf.set_log_level(logging.ERROR)


def main(model: str, inputs: str, output: str, kind: str = "") -> None:
    arrays = dict(np.load(inputs))
    count = len(next(iter(arrays.values())))
    samples = [{name: rows[i:i + 1] for name, rows in arrays.items()} for i in range(count)]
    loaded = onnx.load(model)
    began = time.perf_counter()
    if max(o.version for o in loaded.opset_import if o.domain in ("", "ai.onnx")) < 13:
        loaded = version_converter.convert_version(loaded, 13)
    model_type = nncf.ModelType.TRANSFORMER if kind == "transformer" else None
    onnx.save(nncf.quantize(loaded, nncf.Dataset(samples), subset_size=count, model_type=model_type), output)
    print(time.perf_counter() - began)


main(*sys.argv[1:])
