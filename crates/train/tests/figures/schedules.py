"""Learning rates of PyTorch's schedulers, step by step."""
import json
import sys
import warnings

import torch
from torch.optim import lr_scheduler as schedulers

warnings.filterwarnings("ignore")
steps = json.load(sys.stdin)


def rates(make):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimiser)
    found = []
    for step in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if step + 1 < steps:
            scheduler.step()
    return found


def warm(optimiser):
    up = schedulers.LambdaLR(optimiser, lambda step: (step + 1) / 20)
    return schedulers.SequentialLR(optimiser, [up, schedulers.CosineAnnealingLR(optimiser, steps - 20)], [20])


json.dump({
    "one-cycle": rates(lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=steps, cycle_momentum=False)),
    "cosine": rates(lambda o: schedulers.CosineAnnealingLR(o, steps)),
    "linear": rates(lambda o: schedulers.LinearLR(o, 1.0, 0.0, steps)),
    "constant": rates(lambda o: schedulers.ConstantLR(o, 1.0)),
    "warm cosine": rates(warm),
}, sys.stdout)
