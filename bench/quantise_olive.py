"""Olive's static quantisation pass with its defaults for processors: `quantise_olive.py MODEL INPUTS.npz OUTPUT`. Prints seconds."""
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np
import onnx
from onnx import version_converter

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
from olive.data.registry import Registry
from olive.workflows import run

logging.disable(logging.WARNING)


class Samples:
    """One row of the inputs is one sample."""

    def __init__(self, path: str):
        self.arrays = dict(np.load(path))

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int):
        return {name: rows[index] for name, rows in self.arrays.items()}, 0


@Registry.register_dataset()
def samples(path: str, **_):
    return Samples(path)


def main(model: str, inputs: str, output: str) -> None:
    data = {"name": "samples", "type": "DataContainer", "load_dataset_config": {"type": "samples", "params": {"path": inputs}},
            "pre_process_data_config": {"type": "skip_pre_process"}, "post_process_data_config": {"type": "skip_post_process"},
            "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 1}}}
    with tempfile.TemporaryDirectory() as folder:
        loaded = onnx.load(model)
        if max(o.version for o in loaded.opset_import if o.domain in ("", "ai.onnx")) < 13:
            # Its file would have operators that its own version lacks.
            model = str(pathlib.Path(folder) / "raised.onnx")
            onnx.save(version_converter.convert_version(loaded, 13), model)
        config = {
            "input_model": {"type": "OnnxModel", "model_path": model},
            "systems": {"local": {"type": "LocalSystem", "accelerators": [
                {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}},
            "target": "local",
            "data_configs": [data],
            "passes": {"quantise": {"type": "OnnxStaticQuantization", "data_config": "samples", "quant_format": "QDQ",
                                    "per_channel": True, "precision": "int8", "activation_type": "uint8"}},
            "output_dir": str(pathlib.Path(folder) / "out"), "cache_dir": str(pathlib.Path(folder) / "cache"),
            "evaluate_input_model": False, "log_severity_level": 4,
        }
        file = pathlib.Path(folder) / "config.json"
        file.write_text(json.dumps(config))
        began = time.perf_counter()
        run(str(file))
        seconds = time.perf_counter() - began
        made = next(pathlib.Path(folder, "out").rglob("*.onnx"))
        shutil.copy(made, output)
    print(seconds)


main(*sys.argv[1:])
