"""The loss of a student and its gradients by PyTorch in f64: JSON in, JSON out."""

import json
import sys

import torch
import torch.nn.functional as F

told = json.load(sys.stdin)


def tensor(t):
    # JSON has no infinity: what masks comes as null.
    values = [float("-inf") if v is None else v for v in t["values"]]
    return torch.tensor(values, dtype=torch.float64).reshape(t["shape"])


def weights(all, grad):
    return {name: tensor(t).requires_grad_(grad) for name, t in all.items()}


def mlp(w, x):
    hidden = torch.relu(x @ w["w0"] + w["b0"])
    return hidden, hidden @ w["w1"]


def attention(w, x):
    scores = (x @ w["wq"]) @ (x @ w["wk"]).transpose(1, 2) + w["mask"].clamp(min=-1e4)
    return scores, (torch.softmax(scores, -1) @ x).mean(1) @ w["w1"]


def divergence(own, other, t):
    """Hinton et al. 2015: as PyTorch has it, `batchmean` over rows."""
    own, other = (z.reshape(-1, z.shape[-1]) for z in (own, other))
    return t * t * F.kl_div(F.log_softmax(own / t, -1), F.log_softmax(other / t, -1), reduction="batchmean", log_target=True)


x = tensor(told["x"])
student, teacher = weights(told["student"], True), weights(told["teacher"], False)
t, alpha = told["temperature"], told["alpha"]
model = {"mlp": mlp, "attention": attention}[told["case"]]
inner, logits = model(student, x)
teacher_inner, teacher_logits = model(teacher, x)
loss = (1 - alpha) * divergence(logits, teacher_logits, t)
if alpha:
    loss = loss + alpha * F.cross_entropy(logits, torch.tensor(told["labels"]))
if told["case"] == "mlp":
    student["distil/projection"] = tensor(told["projection"]).requires_grad_(True)
    loss = loss + 0.7 * F.mse_loss(inner @ student["distil/projection"], teacher_inner)
else:
    loss = loss + 0.4 * divergence(inner.clamp(min=-1e4), teacher_inner.clamp(min=-1e4), 1.0)
loss.backward()
trained = {name: w.grad.flatten().tolist() for name, w in student.items() if name != "mask"}
json.dump({"loss": loss.item(), "gradients": trained}, sys.stdout)
