"""Two layers rounded as Esser et al. 2020 do, by PyTorch in f64: JSON in, JSON out.

The formula is the paper's own (its appendix, algorithm 1): `gradscale` and `roundpass` are there as they are here. A step is
told as the size that it begins with, of which the factor that is trained is 1.
"""

import json
import sys

import torch
import torch.nn.functional as F

told = json.load(sys.stdin)


def tensor(t):
    return torch.tensor(t["values"], dtype=torch.float64).reshape(t["shape"])


def grad_scale(x, by):
    return (x - x * by).detach() + x * by


def round_pass(x):
    return (x.round() - x).detach() + x


def rounded(x, first, factor, low, high, count):
    step = first * grad_scale(factor, 1 / (count * high) ** 0.5)
    return round_pass((x / step).clamp(low, high)) * step


def activation(x, first, factor, zero, count):
    # Bytes from a zero point; what rounds to the last of them is within.
    step = first * grad_scale(factor, 1 / (count * 255) ** 0.5)
    whole = round_pass(x / step) + zero
    whole = torch.where(whole < -0.25, 0.0, torch.where(whole > 255.25, 255.0, whole))
    return (whole - zero) * step


trained = {}


def one(name, value):
    trained[name] = value.requires_grad_(True)
    return trained[name]


x = tensor(told["x"])
for layer in told["layers"]:
    if "zero" in layer:
        first = tensor(layer["first"])
        x = activation(x, first, one(layer["factor"], torch.ones_like(first)), layer["zero"], layer["count"])
    elif "weight" in layer:
        w, first = one(layer["weight"], tensor(layer["values"])), tensor(layer["first"])
        factor = one(layer["factor"], torch.ones_like(first))
        cut = w.reshape(layer["cut"])
        made = rounded(cut, first, factor, layer["low"], layer["high"], layer["count"]).reshape(w.shape)
        x = x @ (made.T if layer["transposed"] else made) + one(layer["bias"], tensor(layer["offset"]))
    else:
        x = torch.relu(x)
loss = F.cross_entropy(x, torch.tensor(told["labels"]))
loss.backward()
json.dump({"loss": loss.item(), "gradients": {name: w.grad.flatten().tolist() for name, w in trained.items()}}, sys.stdout)
