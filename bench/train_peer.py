"""PyTorch's side of `cargo xtask bench train`: the models that both sides train, and PyTorch's own steps on them.

    train_peer.py write FOLDER STEPS [NAME…]    NAME.onnx, and NAME.npz with the data of STEPS steps
    train_peer.py step FOLDER NAME MODE         one step for each batch of NAME.npz; figures as JSON

A mode is `eager`, `channels_last`, `compile` (with channels_last for pictures), `hooks` or `ghost` (Opacus). A step is forward, backward and the
optimiser's; reading the data is not in its time. Both sides begin with the weights of NAME.onnx and take the batches in the order of the file, so
their losses must agree.
"""

import copy
import json
import logging
import os
import pathlib
import sys
import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

THREADS = 2
CLASSES = 10
WORDS, LENGTH, WIDTH = 8000, 64, 256


class Block(nn.Module):
    def __init__(self, i, o, stride, norm):
        super().__init__()
        self.a, self.b = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.na, self.nb = norm(o), norm(o)
        self.short = None if stride == 1 and i == o else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), norm(o))

    def forward(self, x):
        y = self.nb(self.b(F.relu(self.na(self.a(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


def resnet18(channels, *, small, norm=nn.BatchNorm2d):
    """He et al. 2016; small pictures keep their size in the first layer."""
    if small:
        stem = [nn.Conv2d(channels, 64, 3, 1, 1, bias=False), norm(64), nn.ReLU()]
    else:
        stem = [nn.Conv2d(channels, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    layers, before = [], 64
    for width, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        layers += [Block(before, width, stride, norm), Block(width, width, 1, norm)]
        before = width
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))


class Inverted(nn.Module):
    def __init__(self, i, o, stride, expand):
        super().__init__()
        wide = i * expand
        parts = [] if expand == 1 else [nn.Conv2d(i, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        parts += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        parts += [nn.Conv2d(wide, o, 1, bias=False), nn.BatchNorm2d(o)]
        self.parts, self.residual = nn.Sequential(*parts), stride == 1 and i == o

    def forward(self, x):
        return x + self.parts(x) if self.residual else self.parts(x)


def mobilenet2():
    """Sandler et al. 2018."""
    layers, before = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()], 32
    for expand, width, count, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(count):
            layers.append(Inverted(before, width, stride if i == 0 else 1, expand))
            before = width
    layers += [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES)]
    return nn.Sequential(*layers)


class Layer(nn.Module):
    """Norm before each block; attention by PyTorch's fused operator."""

    def __init__(self, heads=4):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.n1, self.n2, self.up, self.down = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, w = x.shape
        q, k, v = self.qkv(self.n1(x)).reshape(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, w))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Places(nn.Module):
    """A vector for each place, looked up for each example: the form that Opacus can clip."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(LENGTH, WIDTH)

    def forward(self, x):
        return self.table(torch.arange(LENGTH).expand(x.shape[0], LENGTH).contiguous())


class Transformer(nn.Module):
    def __init__(self, layers=4):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), Places()
        self.layers, self.norm, self.head = nn.Sequential(*[Layer() for _ in range(layers)]), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places.table.weight, std=0.02)

    def forward(self, x):
        return self.head(self.norm(self.layers(self.words(x) + self.places(x))).mean(1))


def group_norm(width):
    return nn.GroupNorm(8, width)


# Name: model, batch, shape of an example (none for tokens), optimiser.
MODELS = {
    "resnet18_28": (lambda: resnet18(1, small=True), 64, (1, 28, 28), "sgd"),
    "resnet18_224": (lambda: resnet18(3, small=False), 8, (3, 224, 224), "sgd"),
    "mobilenetv2_96": (mobilenet2, 16, (3, 96, 96), "sgd"),
    "transformer": (Transformer, 32, None, "adam"),
    "resnet18_group": (lambda: resnet18(1, small=True, norm=group_norm), 16, (1, 28, 28), "sgd"),
}


def made(name):
    make, batch, shape, optimiser = MODELS[name]
    torch.manual_seed(1)
    return make(), batch, shape, optimiser


def write(folder, steps, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        model, batch, shape, _ = made(name)
        drawn = np.random.default_rng(2)
        count = batch * steps
        x = drawn.standard_normal((count, *shape), dtype=np.float32) if shape else drawn.integers(0, WORDS, (count, LENGTH))
        y = drawn.integers(0, CLASSES if shape else 2, count)
        np.savez(folder / f"{name}.npz", x=x, y=y)
        # Nothing folded: what is gone cannot be trained.
        program = torch.onnx.export(copy.deepcopy(model).eval(), (torch.from_numpy(x[:batch]),), dynamo=True, optimize=False, input_names=["x"],
                                    output_names=["scores"], dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), verbose=False)
        program.save(folder / f"{name}.onnx")


def private(model, optimiser, criterion, batch, mode):
    """The same with Opacus: gradients clipped to norm 1 for each example, noise of 1."""
    from opacus import PrivacyEngine

    # Opacus asks for a loader, for its accounting; the batches come from the file all the same.
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(batch * 100)), batch_size=batch)
    how = dict(module=model, optimizer=optimiser, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=False)
    if mode == "hooks":
        model, optimiser, _ = PrivacyEngine().make_private(**how)
        return model, optimiser, criterion
    model, optimiser, criterion, _ = PrivacyEngine().make_private(**how, criterion=criterion, grad_sample_mode="ghost")
    return model, optimiser, criterion


def resident_peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


def step(folder, name, mode):
    torch.set_num_threads(THREADS)
    torch.set_num_interop_threads(1)
    model, batch, shape, kind = made(name)
    data = np.load(folder / f"{name}.npz")
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    model.train()
    layout = torch.channels_last if shape and mode in ("channels_last", "compile") else torch.contiguous_format
    if shape:
        model = model.to(memory_format=layout)
    parameters = model.parameters()
    optimiser = torch.optim.SGD(parameters, 0.01, momentum=0.9) if kind == "sgd" else torch.optim.Adam(parameters, 1e-3)
    criterion = nn.CrossEntropyLoss()
    run = torch.compile(model) if mode == "compile" else model
    if mode in ("hooks", "ghost"):
        run, optimiser, criterion = private(model, optimiser, criterion, batch, mode)
    times, losses = [], []
    for at in range(0, len(y), batch):
        given, target = x[at : at + batch], y[at : at + batch]
        given = given.contiguous(memory_format=layout) if shape else given
        began = time.perf_counter()
        optimiser.zero_grad()
        loss = criterion(run(given), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        times.append((time.perf_counter() - began) * 1e3)
    return dict(step_p50_ms=float(np.median(times)), loss=float(np.mean(losses)), peak_memory_bytes=resident_peak(), steps_ms=times,
                torch=torch.__version__)


if __name__ == "__main__" and sys.argv[1] == "write":
    write(pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
elif __name__ == "__main__":
    # Opacus and the compiler speak on standard output; the figures are the last line.
    print(json.dumps(step(pathlib.Path(sys.argv[2]), *sys.argv[3:5])), flush=True)
    # Threads of the compiler's workers would hold the end up.
    os._exit(0)
