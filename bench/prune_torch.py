"""Torch-Pruning on a ResNet-18 that PyTorch trained on PneumoniaMNIST: `prune_torch.py DATA.npz FOLDER RATIO EPOCHS TUNING`.

Trains for EPOCHS, then takes RATIO of the multiply-adds out in three cuts (group magnitudes over the whole network, channels in multiples of 8) and
trains on after each, TUNING epochs together: what `edgeward compress --prune` does. Writes original.onnx and pruned.onnx into FOLDER; prints
both areas under the ROC curve and the part of the multiply-adds that is left, as JSON.
"""
import json
import logging
import pathlib
import sys
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from train_peer import resnet18

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

BATCH, RATE, CUTS = 64, 0.001, 3


def auc(model, x, y):
    """By ranks; ties count half."""
    model.eval()
    with torch.no_grad():
        scores = torch.cat([F.softmax(model(x[i:i + 256]), 1)[:, 1] for i in range(0, len(x), 256)]).double().numpy()
    positive, negative = scores[y == 1][:, None], scores[y == 0][None]
    return float((positive > negative).mean() + 0.5 * (positive == negative).mean())


def cropped(x, drawn):
    padded, size = F.pad(x, (2, 2, 2, 2)), x.shape[-1]
    places = drawn.integers(0, 5, (len(x), 2))
    return torch.stack([image[:, i:i + size, j:j + size] for image, (i, j) in zip(padded, places)])


def train(model, x, y, epochs, drawn):
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * (len(x) // BATCH))
    for _ in range(epochs):
        order = drawn.permutation(len(x))
        for at in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[at:at + BATCH]
            optimiser.zero_grad()
            F.cross_entropy(model(cropped(x[rows], drawn)), y[rows]).backward()
            optimiser.step()
            schedule.step()


def export(model, x, file):
    program = torch.onnx.export(model.eval(), (x[:2],), dynamo=True, input_names=["x"], output_names=["scores"],
                                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False)
    program.save(file)


def main(data, folder, ratio, epochs, tuning):
    torch.set_num_threads(2)
    torch.manual_seed(0)
    drawn, arrays, folder = np.random.default_rng(0), np.load(data), pathlib.Path(folder)
    pictures = lambda name: torch.from_numpy(arrays[f"{name}_images"]).float().unsqueeze(1) / 255
    labels = lambda name: torch.from_numpy(arrays[f"{name}_labels"]).long().flatten()
    mean, std = pictures("train").mean(), pictures("train").std()
    x, y, val, val_y = (pictures("train") - mean) / std, labels("train"), (pictures("val") - mean) / std, labels("val").numpy()
    model = resnet18(1, small=True)
    model[-1] = nn.Linear(512, 2)
    train(model, x, y, int(epochs), drawn)
    before = auc(model, val, val_y)
    export(model, x, folder / "original.onnx")
    whole, _ = tp.utils.count_ops_and_params(model, x[:1])
    pruner = tp.pruner.BasePruner(model, x[:1], importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
                                  pruning_ratio=0.95, iterative_steps=400, ignored_layers=[model[-1]], round_to=8)
    each = max(int(tuning) // (CUTS + 1), 1)
    for cut in range(CUTS):
        goal = whole * (1 - float(ratio)) ** ((cut + 1) / CUTS)
        left = whole
        while left > goal and pruner.current_step < 400:
            pruner.step()
            left, _ = tp.utils.count_ops_and_params(model, x[:1])
        train(model, x, y, each if cut + 1 < CUTS else int(tuning) - each * (CUTS - 1), drawn)
    export(model, x, folder / "pruned.onnx")
    print(json.dumps({"auc_before": before, "auc": auc(model, val, val_y), "left": left / whole}))


main(*sys.argv[1:])
