"""Training steps by PyTorch: losses, optimisers, clipped examples, whole models.

    reference.py write FOLDER [NAME…]    NAME.onnx, index.json and values.bin

Gradients and states are those of PyTorch in f64; whole models tell beside them how far PyTorch's own f32 is from these.
"""

import copy
import json
import logging
import math
import pathlib
import sys
import warnings

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.manual_seed(5)
CASES = {}
BLOB = bytearray()


def put(array):
    array = np.asarray(array)
    array = array.astype(np.int64) if array.dtype.kind in "iu" else array.astype(np.float64)
    entry = dict(shape=list(array.shape), at=len(BLOB), integer=array.dtype.kind == "i")
    BLOB.extend(array.tobytes())
    return entry


class Net(nn.Sequential):
    pass


def export(path, model, x):
    """As a user would who wants to train: nothing folded, the batch by name."""
    program = torch.onnx.export(copy.deepcopy(model).eval(), (x,), dynamo=True, optimize=False, input_names=["x"], output_names=["y"],
                                dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), verbose=False)
    program.save(path)
    found = onnx.load(path)
    # Weights of the file by the model's own: those of the same name, else equal ones, or transposed ones.
    own = {n: p.detach().numpy() for n, p in model.named_parameters()}
    buffers = {n for n, _ in model.named_buffers()}
    stored = {t.name for t in found.graph.initializer}
    places = {}
    for tensor in found.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name in own:
            places[tensor.name] = (tensor.name, False)
            continue
        for name, parameter in own.items():
            if values.size < 2 or tensor.name in buffers or name in stored:
                continue
            if values.shape == parameter.shape and np.array_equal(values, parameter):
                places[tensor.name] = (name, False)
            elif values.ndim == 2 and values.shape == parameter.T.shape and np.array_equal(values, parameter.T):
                places.setdefault(tensor.name, (name, True))
    return places


def tensors(places, by_name):
    """Values by the names of the file."""
    return {file: put(by_name[name].detach().double().numpy().T if turned else by_name[name].detach().double().numpy())
            for file, (name, turned) in places.items()}


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))


# --- losses -------------------------------------------------------------------------------------------------------------

X = torch.randn(6, 5)
CLASSES = torch.tensor([0, 3, 1, 1, 2, 0])
FLOATS = torch.rand(6, 4)
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.0, 3.0])


def weighted(each):
    return (each * WEIGHTS).sum() / WEIGHTS.sum()


def kl(y, t, temperature):
    return temperature**2 * F.kl_div(F.log_softmax(y / temperature, -1), F.log_softmax(t / temperature, -1), reduction="batchmean", log_target=True)


def lossy(name, function, loss, targets, **spec):
    def run(folder):
        model = mlp()
        places = export(folder / f"{name}.onnx", model, X)
        wide = copy.deepcopy(model).double()
        value = function(wide(X.double()), *[t.double() if t.is_floating_point() else t for t in targets.values()])
        value.backward()
        gradients = {n: p.grad for n, p in wide.named_parameters()}
        return dict(kind="gradient", loss=loss, spec=spec, inputs={"x": put(X), **{n: put(t) for n, t in targets.items()}},
                    losses=[value.item()], gradients=tensors(places, gradients))

    CASES[f"loss_{name}"] = lambda folder: run(folder)
    CASES[f"loss_{name}"].file = name


ce = dict(kind="cross_entropy")
lossy("plain", F.cross_entropy, [ce], dict(target=CLASSES))
lossy("smooth", lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1), [ce | dict(smoothing=0.1)], dict(target=CLASSES))
CW = torch.tensor([0.5, 2.0, 1.0, 0.25])
lossy("weighted_classes", lambda y, t: F.cross_entropy(y, t, CW.double()), [ce | dict(class_weights=CW.tolist())], dict(target=CLASSES))
lossy("weighted_smooth", lambda y, t: F.cross_entropy(y, t, CW.double(), label_smoothing=0.2), [ce | dict(class_weights=CW.tolist(), smoothing=0.2)], dict(target=CLASSES))
IGNORED = torch.tensor([0, -100, 1, 1, -100, 0])
lossy("ignored", F.cross_entropy, [ce | dict(ignore=-100)], dict(target=IGNORED))
lossy("examples", lambda y, t, w: weighted(F.cross_entropy(y, t, reduction="none")), [ce], dict(target=CLASSES, example_weight=WEIGHTS), example_weights=True)
lossy("binary", F.binary_cross_entropy_with_logits, [dict(kind="binary")], dict(target=FLOATS))
lossy("binary_positive", lambda y, t: F.binary_cross_entropy_with_logits(y, t, pos_weight=torch.tensor(3.0).double()), [dict(kind="binary", positive=3.0)], dict(target=FLOATS))
lossy("square", F.mse_loss, [dict(kind="square")], dict(target=FLOATS))
lossy("absolute", F.l1_loss, [dict(kind="absolute")], dict(target=FLOATS))
lossy("huber", lambda y, t: F.huber_loss(y, t, delta=0.4), [dict(kind="huber", delta=0.4)], dict(target=FLOATS))
lossy("kl", lambda y, t: kl(y, t, 2.0), [dict(kind="kl", temperature=2.0)], dict(target=FLOATS))
lossy("cosine", lambda y, t: 1 - F.cosine_similarity(y, t, -1).mean() if True else 0, [dict(kind="cosine")], dict(target=FLOATS))
lossy("two", lambda y, t, s: 0.3 * F.cross_entropy(y, t) + 0.7 * kl(y, s, 3.0), [ce | dict(weight=0.3), dict(kind="kl", temperature=3.0, weight=0.7, target="teacher")],
      dict(target=CLASSES, teacher=FLOATS))

# --- optimisers ---------------------------------------------------------------------------------------------------------

STEPS = 6


class Lamb(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2, with both moments corrected."""

    def __init__(self, parameters, lr, betas, eps, weight_decay):
        super().__init__(parameters, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["t"] += 1
                b1, b2 = group["betas"]
                state["m"].mul_(b1).add_(p.grad, alpha=1 - b1)
                state["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                m, v = state["m"] / (1 - b1 ** state["t"]), state["v"] / (1 - b2 ** state["t"])
                r = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * p
                p.sub_(group["lr"] * p.norm() / r.norm() * r)


def optimising(name, make, optimiser, *, rate, clip=None, accumulate=1, ema=None, frozen=None):
    def run(folder):
        model = mlp()
        places = export(folder / f"opt_{name}.onnx", model, X)
        wide = copy.deepcopy(model).double()
        averages = {n: p.detach().clone() for n, p in wide.named_parameters()}
        trained = [(n, p) for n, p in wide.named_parameters() if not (frozen and n.startswith(frozen))]
        worker = make([p for _, p in trained], rate)
        losses, inputs = [], []
        generator = torch.Generator().manual_seed(3)
        for step in range(STEPS):
            x = torch.randn(6, 5, generator=generator)
            inputs.append(put(x))
            loss = F.cross_entropy(wide(x.double()), CLASSES)
            losses.append(loss.item())
            (loss / accumulate).backward()
            if (step + 1) % accumulate:
                continue
            if clip:
                nn.utils.clip_grad_norm_([p for _, p in trained], clip)
            worker.step()
            worker.zero_grad()
            for n, p in wide.named_parameters():
                averages[n].mul_(ema or 0).add_(p.detach(), alpha=1 - (ema or 0))
        final = averages if ema else dict(wide.named_parameters())
        return dict(kind="steps", loss=[ce], spec=dict(clip=clip, accumulate=accumulate, ema=ema, frozen=[frozen + "*"] if frozen else []),
                    optimiser=optimiser, rate=rate, inputs={"target": put(CLASSES)}, series=inputs, losses=losses, weights=tensors(places, final))

    CASES[f"optimiser_{name}"] = lambda folder: run(folder)
    CASES[f"optimiser_{name}"].file = f"opt_{name}"


sgd = lambda **more: lambda p, lr: torch.optim.SGD(p, lr, **more)
optimising("sgd", sgd(), dict(kind="sgd"), rate=0.3)
optimising("momentum", sgd(momentum=0.9, weight_decay=0.01), dict(kind="sgd", momentum=0.9, decay=0.01), rate=0.1)
optimising("nesterov", sgd(momentum=0.8, nesterov=True), dict(kind="sgd", momentum=0.8, nesterov=True), rate=0.1)
optimising("adam", lambda p, lr: torch.optim.Adam(p, lr, weight_decay=0.05), dict(kind="adam", decay=0.05), rate=0.01)
optimising("adamw", lambda p, lr: torch.optim.AdamW(p, lr, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1), dict(kind="adamw", decay=0.1, beta1=0.8, beta2=0.95, epsilon=1e-6), rate=0.02)
optimising("lamb", lambda p, lr: Lamb(p, lr, (0.9, 0.999), 1e-6, 0.01), dict(kind="lamb", decay=0.01, epsilon=1e-6), rate=0.02)
optimising("clipped", sgd(), dict(kind="sgd"), rate=0.3, clip=0.2)
optimising("accumulated", sgd(momentum=0.9), dict(kind="sgd", momentum=0.9), rate=0.2, accumulate=3)
optimising("average", sgd(), dict(kind="sgd"), rate=0.3, ema=0.7)
optimising("frozen", sgd(), dict(kind="sgd"), rate=0.3, frozen="0.")

# --- models -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, i, o, stride, norm=nn.BatchNorm2d):
        super().__init__()
        self.a, self.b = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.na, self.nb = norm(o), norm(o)
        self.short = None if stride == 1 and i == o else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), norm(o))

    def forward(self, x):
        y = self.nb(self.b(F.relu(self.na(self.a(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


def resnet18(channels=1, classes=10, stem=None):
    """He et al. 2016; the stem of the original for large images, of a 3x3 convolution for small ones."""
    stem = stem or [nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers, before = [], 64
    for width, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        layers += [Block(before, width, stride), Block(width, width, 1)]
        before = width
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class Inverted(nn.Module):
    def __init__(self, i, o, stride, expand):
        super().__init__()
        wide = i * expand
        parts = [] if expand == 1 else [nn.Conv2d(i, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        parts += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(), nn.Conv2d(wide, o, 1, bias=False), nn.BatchNorm2d(o)]
        self.parts, self.residual = nn.Sequential(*parts), stride == 1 and i == o

    def forward(self, x):
        return x + self.parts(x) if self.residual else self.parts(x)


def mobilenet2(classes=10):
    """Sandler et al. 2018."""
    layers, before = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()], 32
    for expand, width, count, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(count):
            layers.append(Inverted(before, width, stride if i == 0 else 1, expand))
            before = width
    layers += [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    return nn.Sequential(*layers)


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n1, self.n2, self.up, self.down = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, w = x.shape
        q, k, v = self.qkv(self.n1(x)).reshape(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(w // self.heads), -1)
        x = x + self.out((a @ v).transpose(1, 2).reshape(b, t, w))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Transformer(nn.Module):
    def __init__(self, words=200, width=64, layers=4, heads=4, length=16, classes=3):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers, self.norm, self.head = nn.Sequential(*[Layer(width, heads) for _ in range(layers)]), nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.norm(self.layers(self.words(x) + self.places)).mean(1))


class Lstm(nn.Module):
    def __init__(self, words=50, width=24, hidden=32, classes=3):
        super().__init__()
        self.words, self.cells, self.head = nn.Embedding(words, width), nn.LSTM(width, hidden, batch_first=True), nn.Linear(hidden, classes)

    def forward(self, x):
        return self.head(self.cells(self.words(x))[0][:, -1])


def small(norm=lambda w: nn.GroupNorm(2, w)):
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1, groups=2), norm(8), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(8, 8, 2), nn.Flatten(), nn.Linear(8, 4))


def gradients_of(model, x, target):
    model.train()
    loss = F.cross_entropy(model(x), target)
    loss.backward()
    return loss.item(), {n: p.grad.double() for n, p in model.named_parameters()}


PLACES = {}


def whole(name, make, data, classes, draws=1):
    """`draws`: batches of which the middle error counts. An element that lies near a bound of ReLU6 falls to one or the other
    side by the last bit, in PyTorch as in any engine, and one that falls otherwise than in f64 outweighs all rounding."""

    def run(folder, draw):
        torch.manual_seed(2)
        model = make()
        torch.manual_seed(100 + draw)
        x = data()
        target = torch.randint(0, classes, (x.shape[0],))
        if name not in PLACES:
            PLACES[name] = export(folder / f"{name}.onnx", model, x)
        narrow, wide = copy.deepcopy(model), copy.deepcopy(model).double()
        x64 = x.double() if x.is_floating_point() else x
        _, own = gradients_of(narrow, x, target)
        loss, exact = gradients_of(wide, x64, target)
        statistics = {n: put(b.detach().numpy()) for n, b in wide.named_buffers() if "running" in n}
        flat = lambda g: torch.cat([g[n].reshape(-1) for n in exact])
        error = (flat(own) - flat(exact)).norm() / flat(exact).norm()
        return dict(kind="gradient", loss=[ce], spec={}, inputs={"x": put(x), "target": put(target)}, losses=[loss], gradients=tensors(PLACES[name], exact),
                    statistics=statistics, own_error=error.item())

    for draw in range(draws):
        CASES[f"model_{name}_{draw}"] = lambda folder, draw=draw: run(folder, draw)
        CASES[f"model_{name}_{draw}"].file = name


whole("resnet18", resnet18, lambda: torch.randn(8, 1, 28, 28), 10)
whole("mobilenet2", mobilenet2, lambda: torch.randn(4, 3, 64, 64), 10, draws=7)
whole("transformer", Transformer, lambda: torch.randint(0, 200, (8, 16)), 3)
whole("lstm", Lstm, lambda: torch.randint(0, 50, (8, 12)), 3)

# --- fifty steps --------------------------------------------------------------------------------------------------------


def trained(model, batches, rate, layout=torch.contiguous_format):
    """The losses of a step for each batch."""
    model = model.to(memory_format=layout).train()
    worker, losses = torch.optim.SGD(model.parameters(), rate, momentum=0.9), []
    for x, target in batches:
        if x.dim() == 4:
            x = x.to(memory_format=layout)
        loss = F.cross_entropy(model(x), target)
        worker.zero_grad()
        loss.backward()
        worker.step()
        losses.append(loss.item())
    return losses


def fifty(name, make, data, classes, rate):
    """`spread`: how far PyTorch's own f32 runs are from its f64 in the mean over all steps, that of the layout and threads that is the
    furthest. The classes can be told apart; of pure noise the steps would be chaotic, and the runs would differ by as much as they like (MobileNetV2's
    do anyway: 0.2 to 0.5)."""

    def run(folder):
        torch.manual_seed(6)
        model = make()
        kinds = data(classes)
        target = torch.arange(16) % classes
        noise = lambda: torch.randn(16, *kinds.shape[1:]) if kinds.is_floating_point() else torch.randint(-1, 2, (16, *kinds.shape[1:]))
        batches = [(kinds[target] + noise(), target) for _ in range(50)]
        if name not in PLACES:
            PLACES[name] = export(folder / f"{name}.onnx", model, batches[0][0])
        wide = lambda x: x.double() if x.is_floating_point() else x
        exact = trained(copy.deepcopy(model).double(), [(wide(x), t) for x, t in batches], rate)
        threads, runs = torch.get_num_threads(), []
        for count in (1, 2):
            torch.set_num_threads(count)
            for layout in (torch.contiguous_format, torch.channels_last):
                runs.append(trained(copy.deepcopy(model), batches, rate, layout))
        torch.set_num_threads(threads)
        spread = max(np.abs(np.subtract(losses, exact)).mean() for losses in runs)
        return dict(kind="steps", loss=[ce], spec={}, optimiser=dict(kind="sgd", momentum=0.9), rate=rate, inputs={"target": put(target)},
                    series=[put(x) for x, _ in batches], losses=exact, spread=spread)

    CASES[f"fifty_{name}"] = lambda folder: run(folder)
    CASES[f"fifty_{name}"].file = name


fifty("resnet18", resnet18, lambda n: torch.randn(n, 1, 14, 14), 10, 0.002)
fifty("transformer", Transformer, lambda n: torch.randint(1, 199, (n, 16)), 3, 0.05)

# --- clipped examples ---------------------------------------------------------------------------------------------------


def private(name, make, x, classes):
    """Clipped at the middle of the examples' norms, so that some are clipped and some are not."""

    def run(folder):
        torch.manual_seed(4)
        model = make()
        places = export(folder / f"private_{name}.onnx", model, x)
        wide = copy.deepcopy(model).double()
        target = torch.randint(0, classes, (x.shape[0],))
        x64 = x.double() if x.is_floating_point() else x
        examples = []
        for i in range(x.shape[0]):
            wide.zero_grad()
            F.cross_entropy(wide(x64[i : i + 1]), target[i : i + 1]).backward()
            examples.append({n: p.grad.clone() for n, p in wide.named_parameters()})
        norms = [math.sqrt(sum(g.square().sum().item() for g in gradients.values())) for gradients in examples]
        clip = float(np.median(norms))
        total = {n: sum(g[n] * min(1.0, clip / norm) for g, norm in zip(examples, norms)) for n in examples[0]}
        loss = F.cross_entropy(wide(x64), target).item()
        return dict(kind="gradient", loss=[ce], spec=dict(private=clip), inputs={"x": put(x), "target": put(target)}, losses=[loss], gradients=tensors(places, total))

    CASES[f"private_{name}"] = lambda folder: run(folder)
    CASES[f"private_{name}"].file = f"private_{name}"


private("mlp", mlp, torch.randn(6, 5), 4)
private("convolutions", small, torch.randn(5, 2, 8, 8), 4)
private("transformer", lambda: Transformer(30, 16, 2, 2, 8, 3), torch.randint(0, 30, (5, 8)), 3)


def write(folder, names):
    index = {}
    for name, make in CASES.items():
        if names and not any(name.startswith(n) for n in names):
            continue
        index[name] = dict(make(folder), file=f"{make.file}.onnx")
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "values.bin").write_bytes(bytes(BLOB))


write(pathlib.Path(sys.argv[2]), sys.argv[3:])
