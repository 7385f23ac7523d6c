"""Makes the models that tests and benchmarks run: `make.py FOLDER [NAME…]`, without names all of them.

A model that is there already is left as it is, so delete the folder after a change here. Prints a path for each.
"""
import pathlib
import sys

import onnx

import language
import small
import vision


def quantized(float_path: pathlib.Path, to: pathlib.Path) -> None:
    """Static int8 in QDQ form, scales from four random images."""
    import numpy as np
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        def __init__(self):
            random = np.random.default_rng(8)
            self.left = [random.standard_normal((1, 3, 224, 224), dtype=np.float32) for _ in range(4)]

        def get_next(self):
            return {"image": self.left.pop()} if self.left else None

    quantization.quantize_static(
        str(float_path),
        str(to),
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )


MODELS = {
    "identity16": small.identity,
    "identity150528": lambda: small.identity(shape=("batch", 3, 224, 224)),
    "add_sub": small.add_sub,
    "perceptron_4mb": lambda: small.perceptron(1020, 1),
    "perceptron_100mb": lambda: small.perceptron(2240, 5),
    "mobilenetv2": vision.mobilenetv2,
    "resnet50": vision.resnet50,
    "bert_small": lambda: language.bert(2, 128, 2, "bert_small"),
    "bert_base": lambda: language.bert(12, 768, 12, "bert_base"),
}
DERIVED = {"resnet50_int8": ("resnet50", quantized)}


def make(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    # A second process never finds half a file.
    part = folder / f".{name}.part.onnx"
    if name in DERIVED:
        source, derive = DERIVED[name]
        derive(make(folder, source), part)
    else:
        onnx.save(MODELS[name](), part)
    return part.replace(path)


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    names = sys.argv[2:] or [*MODELS, *DERIVED]
    if unknown := [n for n in names if n not in MODELS and n not in DERIVED]:
        sys.exit(f"no model `{'`, `'.join(unknown)}`; there are `{'`, `'.join([*MODELS, *DERIVED])}`")
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(make(out, name), flush=True)
