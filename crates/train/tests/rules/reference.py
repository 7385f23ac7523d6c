"""Cases for the rules of differentiation: small ONNX graphs, and what PyTorch's autograd makes of the same function in f64.

    reference.py write FOLDER    models (NAME.f32.onnx, NAME.f64.onnx), index.json and values.bin
    reference.py check FOLDER    runs NAME.f64.vjp.onnx by ONNX's reference evaluator, against PyTorch and differences

A function of one node is told by its operator and its inputs: float arrays are inputs that are differentiated by, C(...)
and integers are constants.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

rng = np.random.default_rng(7)
CASES = []


class C:
    """A constant of floats."""

    def __init__(self, array):
        self.array = np.asarray(array, np.float64)


def R(*shape, low=-1.0, high=1.0):
    return rng.uniform(low, high, shape)


def P(*shape):
    """Apart from 0 and positive."""
    return rng.uniform(0.3, 2.0, shape)


def D(*shape):
    """All different, so that no two tie."""
    return (rng.permutation(int(np.prod(shape))).reshape(shape) / np.prod(shape) - 0.5) * 4 + 0.013


def I(*values):
    return np.array(values, np.int64)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


def case(name, op, inputs, function, *, opset=17, outputs=1, symbols=(), nodes=None, loose=False, used=None, **attributes):
    """`symbols`: axes of each input declared by name; `used`: outputs with a seed.

    `loose`: the reference evaluator computes this in f32, or f32 attributes bound the digits; "not": it computes something
    else, or not at all, and only the engines are asked; a word: no differences of the forward graph, which is another function.
    """
    names = [f"x{i}" for i in range(len(inputs))]
    given = [n if value is not None else "" for n, value in zip(names, inputs)]
    results = [f"y{i}" for i in range(outputs)]
    CASES.append(dict(name=name, inputs=dict((n, v) for n, v in zip(names, inputs) if v is not None), function=function,
                      nodes=nodes or [node(op, given, results, name=name, **attributes)], outputs=results, opset=opset,
                      symbols=symbols, loose=loose, used=used if used is not None else list(range(outputs))))


def elementwise():
    unary = {
        "Abs": torch.abs, "Acos": torch.acos, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh,
        "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Neg": torch.neg, "Relu": torch.relu,
        "Sigmoid": torch.sigmoid, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign,
        "Tan": torch.tan, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
        "Elu": F.elu, "Selu": F.selu, "LeakyRelu": F.leaky_relu, "Identity": lambda x: x * 1,
    }
    for op, function in unary.items():
        scale = 4 if op in ("HardSwish", "Elu", "Selu", "LeakyRelu", "Softplus", "Mish") else 0.9
        case(op.lower(), op, [D(3, 5) / 2 * scale], function, opset=18, loose=op in ("Erf", "Selu", "LeakyRelu"))
    case("acosh", "Acosh", [P(3, 4) + 1], torch.acosh)
    for op, function in {"Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal}.items():
        case(op.lower(), op, [P(3, 4)], function)
    case("celu", "Celu", [D(3, 4)], lambda x: F.celu(x, 0.7), alpha=0.7, loose=True)
    case("gelu", "Gelu", [D(3, 4)], F.gelu, opset=20, loose=True)
    case("gelu_tanh", "Gelu", [D(3, 4)], lambda x: F.gelu(x, approximate="tanh"), opset=20, approximate="tanh")
    case("hard_sigmoid", "HardSigmoid", [D(4, 4) * 3], lambda x: torch.clamp(x * 0.3 + 0.4, 0, 1), alpha=0.3, beta=0.4, loose=True)
    case("thresholded", "ThresholdedRelu", [D(4, 4)], lambda x: torch.where(x > 0.7, x, torch.zeros_like(x)), alpha=0.7)
    case("leaky_slope", "LeakyRelu", [D(4, 4)], lambda x: F.leaky_relu(x, 0.3), alpha=0.3, loose=True)
    case("clip", "Clip", [D(4, 5), C(-0.9), C(1.1)], lambda x, a, b: torch.clamp(x, a.item(), b.item()))
    case("clip_above", "Clip", [D(4, 5), None, C(0.6)], lambda x, b: torch.clamp(x, max=b.item()))
    case("prelu", "PRelu", [D(2, 3, 4), R(3, 1)], lambda x, s: torch.where(x > 0, x, x * s))
    binary = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": lambda a, b: a / b}
    for op, function in binary.items():
        case(op.lower(), op, [R(3, 4), P(3, 4)], function)
        case(op.lower() + "_row", op, [R(2, 3, 4), P(4)], function)
        case(op.lower() + "_column", op, [R(3, 1), P(2, 3, 4)], function)
        case(op.lower() + "_both", op, [R(2, 1, 4), P(3, 1)], function)
        case(op.lower() + "_scalar", op, [R(2, 3), P()], function)
        case(op.lower() + "_batch", op, [R(2, 3, 4), P(4)], function, symbols=[{0: "batch", 1: "length"}])
        case(op.lower() + "_open", op, [R(2, 3, 4), P(3, 1)], function, symbols=[{0: "a", 1: "b", 2: "c"}, {0: "d", 1: "e"}])
    case("sum_three", "Sum", [R(3, 4), R(4), R(3, 1)], lambda a, b, c: a + b + c)
    case("mean_two", "Mean", [R(3, 4), R(3, 4)], lambda a, b: (a + b) / 2)
    case("max", "Max", [D(3, 4), D(3, 4) + 0.01], torch.maximum)
    case("min_row", "Min", [D(3, 4), D(4) + 0.01], torch.minimum)
    case("mod", "Mod", [P(3, 4) * 3, C(0.9)], lambda a, b: torch.fmod(a, b), fmod=1)
    case("pow_square", "Pow", [R(3, 4), C(2.0)], lambda a, b: a**2)
    case("pow_half", "Pow", [P(3, 4), C(0.5)], lambda a, b: a**0.5)
    case("pow_third", "Pow", [P(3, 4), C(3.0)], lambda a, b: a**3)
    case("pow_integer", "Pow", [R(3, 4), I(3)], lambda a, b: a**3)
    case("pow_both", "Pow", [P(3, 4), P(4)], torch.pow)
    mask = rng.random((3, 4)) > 0.5
    case("where", "Where", [mask, R(3, 4), R(4)], torch.where)


def products():
    shapes = {"plain": ((3, 4), (4, 5)), "rows": ((2, 3, 4), (4, 5)), "deep": ((2, 3, 4, 5), (5, 6)), "batch": ((2, 3, 4), (2, 4, 5)),
              "heads": ((2, 3, 4, 5), (2, 3, 5, 6)), "wide": ((2, 1, 4, 5), (3, 5, 6)), "left": ((3, 4), (2, 4, 5)),
              "vectors": ((4,), (4,)), "vector_left": ((4,), (4, 5)), "vector_right": ((3, 4), (4,)),
              "vector_batch": ((2, 3, 4), (4,)), "batch_vector": ((4,), (2, 4, 5))}
    for name, (a, b) in shapes.items():
        case(f"matmul_{name}", "MatMul", [R(*a), R(*b)], torch.matmul)
    case("matmul_symbols", "MatMul", [R(2, 3, 4), R(4, 5)], torch.matmul, symbols=[{0: "batch", 1: "length"}])
    case("matmul_heads_symbols", "MatMul", [R(2, 3, 4, 5), R(2, 3, 5, 4)], torch.matmul, symbols=[{0: "batch", 2: "length"}, {0: "batch", 3: "length"}])
    for ta in (0, 1):
        for tb in (0, 1):
            a, b = R(*((4, 3) if ta else (3, 4))), R(*((5, 4) if tb else (4, 5)))
            case(f"gemm_{ta}{tb}", "Gemm", [a, b, R(5)], lambda a, b, c, ta=ta, tb=tb: 0.5 * (a.T if ta else a) @ (b.T if tb else b) + 2 * c,
                 transA=ta, transB=tb, alpha=0.5, beta=2.0)
    case("gemm_bias_column", "Gemm", [R(3, 4), R(4, 5), R(3, 1)], lambda a, b, c: a @ b + c)
    case("gemm_no_bias", "Gemm", [R(3, 4), R(4, 5)], lambda a, b: a @ b)
    for name, equation, shapes in [("attention", "bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]), ("outer", "i,j->ij", [(3,), (4,)]),
                                   ("summed", "bij,jk->bk", [(2, 3, 4), (4, 5)]), ("three", "ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)]),
                                   ("dots", "...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]), ("implied", "ij,jk", [(3, 4), (4, 5)]),
                                   ("single", "ij->ji", [(3, 4)]), ("lone", "ij,kl->il", [(2, 3), (4, 5)])]:
        case(f"einsum_{name}", "Einsum", [R(*s) for s in shapes], lambda *xs, e=equation: torch.einsum(e, *xs), equation=equation)


def arrangements():
    case("reshape", "Reshape", [R(2, 3, 4), I(4, -1)], lambda x, s: x.reshape(4, -1))
    case("reshape_symbols", "Reshape", [R(2, 3, 4), I(0, -1)], lambda x, s: x.reshape(2, -1), symbols=[{0: "batch", 1: "length"}])
    case("flatten", "Flatten", [R(2, 3, 4)], lambda x: x.reshape(2, 12), axis=1)
    case("squeeze", "Squeeze", [R(2, 1, 4), I(1)], lambda x, a: x.squeeze(1))
    case("unsqueeze", "Unsqueeze", [R(2, 4), I(0, 2)], lambda x, a: x[None, :, None])
    case("transpose", "Transpose", [R(2, 3, 4)], lambda x: x.permute(2, 0, 1), perm=[2, 0, 1])
    case("transpose_all", "Transpose", [R(2, 3, 4)], lambda x: x.permute(2, 1, 0))
    case("expand", "Expand", [R(3, 1), I(2, 3, 4)], lambda x, s: x.expand(2, 3, 4))
    case("tile", "Tile", [R(2, 3), I(2, 3)], lambda x, r: x.repeat(2, 3))
    case("concat", "Concat", [R(2, 3), R(2, 4)], lambda a, b: torch.cat([a, b], 1), axis=1)
    case("concat_symbols", "Concat", [R(2, 3), R(3, 3)], lambda a, b: torch.cat([a, b], 0), axis=0, symbols=[{0: "a"}, {0: "b"}])
    case("split", "Split", [R(2, 6), I(2, 4)], lambda x, s: torch.split(x, [2, 4], 1), outputs=2, axis=1)
    case("split_one", "Split", [R(2, 6), I(2, 4)], lambda x, s: torch.split(x, [2, 4], 1), outputs=2, axis=1, used=[1])
    for name, (start, end, step) in {"inner": (1, 4, 1), "steps": (0, 7, 3), "back": (6, 0, -2), "all_back": (-1, -100, -1),
                                     "negative": (-4, -1, 1), "to_end": (2, 1000, 2)}.items():
        index = np.arange(7)[slice(start, None if end <= -100 else end, step)].copy()
        case(f"slice_{name}", "Slice", [R(2, 7, 3), I(start), I(end), I(1), I(step)], lambda x, *_, index=index: x[:, index])
    case("slice_two", "Slice", [R(5, 6), I(1, 0), I(4, 5), I(0, 1), I(1, 2)], lambda x, *_: x[1:4, 0:5:2])
    case("slice_symbols", "Slice", [R(5, 6), I(1), I(4), I(0)], lambda x, *_: x[1:4], symbols=[{0: "n"}])
    case("slice_symbols_end", "Slice", [R(5, 6), I(-2), I(1000), I(0)], lambda x, *_: x[-2:], symbols=[{0: "n"}])
    case("pad", "Pad", [R(2, 3), I(1, 0, 2, 1)], lambda x, p: F.pad(x, (0, 1, 1, 2)))
    case("pad_cut", "Pad", [R(4, 5), I(-1, 1, 0, -2)], lambda x, p: F.pad(x, (1, -2, -1, 0)), loose="not")
    case("pad_reflect", "Pad", [R(1, 2, 5), I(0, 0, 2, 0, 0, 3)], lambda x, p: F.pad(x, (2, 3), "reflect"), mode="reflect")
    case("pad_edge", "Pad", [R(1, 2, 4, 5), I(0, 0, 1, 2, 0, 0, 0, 1)], lambda x, p: F.pad(x, (2, 1, 1, 0), "replicate"), mode="edge")
    case("depth_to_space", "DepthToSpace", [R(2, 8, 2, 3)], lambda x: x.reshape(2, 2, 2, 2, 2, 3).permute(0, 3, 4, 1, 5, 2).reshape(2, 2, 4, 6), blocksize=2)
    case("depth_to_space_crd", "DepthToSpace", [R(2, 8, 2, 3)], lambda x: F.pixel_shuffle(x, 2), blocksize=2, mode="CRD")
    case("space_to_depth", "SpaceToDepth", [R(2, 2, 4, 6)],
         lambda x: x.reshape(2, 2, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 8, 2, 3), blocksize=2)
    case("trilu", "Trilu", [R(4, 4)], torch.tril, upper=0)
    case("cumsum", "CumSum", [R(3, 4), np.array(1, np.int64)], lambda x, a: torch.cumsum(x, 1))
    case("cumsum_exclusive", "CumSum", [R(3, 4), np.array(1, np.int64)], lambda x, a: torch.cumsum(x, 1) - x, exclusive=1)
    case("gather_rows", "Gather", [R(6, 3), np.array([[0, 5, 0], [2, 0, -1]], np.int64)], lambda x, i: x[i], axis=0)
    case("gather_axis", "Gather", [R(2, 5, 3), np.array([4, 4, 1], np.int64)], lambda x, i: x[:, i], axis=1)
    case("gather_scalar", "Gather", [R(2, 5, 3), np.array(3, np.int64)], lambda x, i: x[:, 3], axis=1)
    case("gather_elements", "GatherElements", [R(3, 4), np.array([[0, 0, 1], [3, 2, 3], [1, 1, 1]], np.int64)], lambda x, i: torch.gather(x, 1, i), axis=1)
    case("gather_nd", "GatherND", [R(3, 4, 2), np.array([[0, 1], [2, -1], [0, 1]], np.int64)], lambda x, i: x[i[:, 0], i[:, 1]])
    case("top_k", "TopK", [D(3, 5), I(2)], lambda x, k: torch.topk(x, 2, 1)[0], outputs=2, used=[0], axis=1)


def reductions():
    functions = {
        "ReduceSum": lambda x, d, k: x.sum(d, k), "ReduceMean": lambda x, d, k: x.mean(d, k), "ReduceMax": lambda x, d, k: x.amax(d, k),
        "ReduceMin": lambda x, d, k: x.amin(d, k), "ReduceL1": lambda x, d, k: x.abs().sum(d, k), "ReduceL2": lambda x, d, k: x.square().sum(d, k).sqrt(),
        "ReduceSumSquare": lambda x, d, k: x.square().sum(d, k), "ReduceLogSumExp": lambda x, d, k: torch.logsumexp(x, d, k),
        "ReduceLogSum": lambda x, d, k: x.sum(d, k).log(),
    }
    for op, function in functions.items():
        for axes, keep in [((1,), 1), ((0, 2), 0), ((-1,), 0)]:
            x = P(2, 3, 4) if op == "ReduceLogSum" else D(2, 3, 4)
            given = [x, I(*axes)] if op == "ReduceSum" else [x]
            more = {} if op == "ReduceSum" else dict(axes=list(axes))
            case(f"{op.lower()}_{'_'.join(str(a % 3) for a in axes)}_{keep}", op, given, lambda x, *_, f=function, a=axes, k=keep: f(x, a, bool(k)), keepdims=keep, **more)
        case(f"{op.lower()}_18", op, [P(2, 3, 4) if op == "ReduceLogSum" else D(2, 3, 4), I(1)], lambda x, *_, f=function: f(x, (1,), False), opset=18, keepdims=0)
    case("reducemean_symbols", "ReduceMean", [R(2, 3, 4)], lambda x: x.mean((1, 2)), axes=[1, 2], keepdims=0, symbols=[{0: "a", 1: "b"}])
    case("reduceprod", "ReduceProd", [P(3, 4)], lambda x: x.prod(1), axes=[1], keepdims=0)
    case("reducesum_all", "ReduceSum", [R(3, 4)], lambda x: x.sum(), keepdims=0)
    for axis in (0, 1, -1):
        case(f"softmax_{axis % 3}", "Softmax", [R(2, 3, 4)], lambda x, a=axis: F.softmax(x, a), axis=axis)
        case(f"logsoftmax_{axis % 3}", "LogSoftmax", [R(2, 3, 4)], lambda x, a=axis: F.log_softmax(x, a), axis=axis)


def normalisations():
    case("layer", "LayerNormalization", [R(2, 3, 5), P(5), R(5)], lambda x, s, b: F.layer_norm(x, (5,), s, b, 1e-3), epsilon=1e-3, loose=True)
    case("layer_two", "LayerNormalization", [R(2, 3, 5), P(3, 5)], lambda x, s: F.layer_norm(x, (3, 5), s, None, 1e-5), axis=1, loose=True)
    case("instance", "InstanceNormalization", [R(2, 3, 4, 5), P(3), R(3)], lambda x, s, b: F.instance_norm(x, weight=s, bias=b, eps=1e-4), epsilon=1e-4)
    case("group", "GroupNormalization", [R(2, 6, 4, 3), P(6), R(6)], lambda x, s, b: F.group_norm(x, 3, s, b, 1e-4), opset=21, num_groups=3, epsilon=1e-4, loose=True)
    case("rms", "RMSNormalization", [R(2, 3, 5), P(5)], lambda x, s: F.rms_norm(x, (5,), s, 1e-3), opset=23, epsilon=1e-3, loose=True)
    # With weights among what is differentiated by, the statistics are those of the batch.
    for name, shape in {"image": (4, 3, 5, 5), "rows": (6, 3), "series": (4, 3, 7)}.items():
        for symbols in ((), [{0: "batch"}]):
            case(f"batch_{name}{'_symbols' if symbols else ''}", "BatchNormalization", [R(*shape) + 3, P(3), R(3), C([0.0] * 3), C([1.0] * 3)],
                 lambda x, s, b, m, v: F.batch_norm(x, None, None, s, b, True, 0.1, 1e-3), epsilon=1e-3, loose="trains", symbols=symbols)
    case("batch_given", "BatchNormalization", [R(4, 3, 5), C([1.0, 2.0, 0.5]), C([0.1, 0.2, 0.3]), C([0.1, 0.2, 0.3]), C([1.0, 2.0, 0.5])],
         lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b, False, 0.1, 1e-5))
    case("lp2", "LpNormalization", [R(3, 4)], lambda x: F.normalize(x, dim=1), axis=1, p=2)
    case("lp1", "LpNormalization", [R(3, 4)], lambda x: F.normalize(x, p=1, dim=1), axis=1, p=1, loose="not")


def convolutions():
    def conv(name, x, w, *, bias=True, loose=False, stride=(1,), pads=None, dilation=(1,), group=1, symbols=()):
        n = len(w) - 2
        stride, dilation = list(stride) * (n // len(stride)), list(dilation) * (n // len(dilation))
        pads = pads or [0] * 2 * n
        function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
        order = [p for i in reversed(range(n)) for p in (pads[i], pads[i + n])]
        inputs = [R(*x), R(*w)] + ([R(w[0])] if bias else [])
        case(f"conv_{name}", "Conv", inputs, lambda x, w, b=None: function(F.pad(x, order), w, b, stride, 0, dilation, group),
             strides=stride, pads=pads, dilations=dilation, group=group, symbols=symbols, loose=loose)

    conv("plain", (2, 3, 6, 7), (4, 3, 3, 3))
    conv("same", (2, 3, 6, 7), (4, 3, 3, 3), pads=[1, 1, 1, 1])
    conv("stride", (2, 3, 7, 8), (4, 3, 3, 3), pads=[1, 1, 1, 1], stride=(2, 2))
    conv("stride_rest", (2, 3, 8, 9), (4, 3, 3, 2), stride=(3, 2))
    conv("dilated", (2, 3, 9, 9), (4, 3, 3, 3), pads=[2, 2, 2, 2], dilation=(2, 2))
    conv("uneven", (2, 3, 6, 6), (4, 3, 2, 3), pads=[0, 1, 1, 2], stride=(2, 1))
    conv("pointwise", (2, 3, 5, 5), (4, 3, 1, 1))
    conv("pointwise_stride", (2, 3, 5, 6), (4, 3, 1, 1), stride=(2, 2))
    conv("grouped", (2, 4, 6, 6), (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1], loose="not")
    conv("depthwise", (2, 4, 6, 6), (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], stride=(2, 2), bias=False)
    conv("many_channels", (2, 16, 5, 5), (8, 16, 3, 3), pads=[1, 1, 1, 1])
    conv("many_places", (1, 16, 12, 12), (4, 16, 3, 3), pads=[1, 1, 1, 1], stride=(1, 1))
    conv("series", (2, 3, 9), (4, 3, 3), stride=(2,), pads=[1, 1])
    conv("volume", (2, 2, 4, 5, 4), (3, 2, 2, 3, 2), stride=(1, 2, 1), pads=[0, 1, 0, 1, 1, 0])
    conv("batch", (2, 3, 6, 7), (4, 3, 3, 3), pads=[1, 1, 1, 1], stride=(2, 2), symbols=[{0: "batch"}])
    conv("open", (2, 3, 6, 7), (4, 3, 3, 3), pads=[1, 1, 1, 1], stride=(2, 2), symbols=[{0: "batch", 2: "h", 3: "w"}])
    conv("open_many", (2, 16, 6, 7), (4, 16, 3, 3), pads=[1, 1, 1, 1], symbols=[{0: "batch", 2: "h", 3: "w"}])
    case("conv_auto", "Conv", [R(2, 3, 7, 7), R(4, 3, 3, 3)], lambda x, w: F.conv2d(F.pad(x, (1, 1, 1, 1)), w, None, 2), auto_pad="SAME_UPPER", strides=[2, 2])
    case("deconv", "ConvTranspose", [R(2, 3, 4, 5), R(3, 4, 3, 3), R(4)], lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1),
         strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    case("deconv_group", "ConvTranspose", [R(2, 4, 4, 5), R(4, 3, 2, 2)], lambda x, w: F.conv_transpose2d(x, w, None, 2, groups=2), strides=[2, 2], group=2, loose="not")
    case("deconv_many", "ConvTranspose", [R(1, 4, 4, 5), R(4, 16, 2, 2)], lambda x, w: F.conv_transpose2d(x, w, None, 2), strides=[2, 2])
    case("deconv_series", "ConvTranspose", [R(2, 3, 5), R(3, 2, 4)], lambda x, w: F.conv_transpose1d(x, w, None, 1, 1), pads=[1, 1])


def pools():
    case("max_pool", "MaxPool", [D(2, 3, 6, 6)], lambda x: F.max_pool2d(x, 2), kernel_shape=[2, 2], strides=[2, 2])
    case("max_pool_overlap", "MaxPool", [D(2, 3, 7, 8)], lambda x: F.max_pool2d(x, 3, 2, 1), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    case("max_pool_ties", "MaxPool", [np.round(R(2, 3, 6, 6) * 2)], lambda x: F.max_pool2d(x, 2), kernel_shape=[2, 2], strides=[2, 2], loose="ties")
    case("max_pool_ceil", "MaxPool", [D(2, 3, 6, 6)], lambda x: F.max_pool2d(x, 3, 2, 0, ceil_mode=True), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    case("max_pool_series", "MaxPool", [D(2, 3, 9)], lambda x: F.max_pool1d(x, 3, 2), kernel_shape=[3], strides=[2])
    case("max_pool_batch", "MaxPool", [D(2, 3, 6, 6)], lambda x: F.max_pool2d(x, 2), kernel_shape=[2, 2], strides=[2, 2], symbols=[{0: "batch"}])
    case("max_pool_open", "MaxPool", [D(2, 3, 7, 6)], lambda x: F.max_pool2d(x, 3, 2, 1), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], symbols=[{0: "batch", 2: "h", 3: "w"}])
    case("average_pool", "AveragePool", [R(2, 3, 6, 6)], lambda x: F.avg_pool2d(x, 2), kernel_shape=[2, 2], strides=[2, 2])
    case("average_pool_pad", "AveragePool", [R(2, 3, 7, 6)], lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=True), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    case("average_pool_no_pad", "AveragePool", [R(2, 3, 7, 6)], lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    case("average_pool_ceil", "AveragePool", [R(2, 3, 6, 6)], lambda x: F.avg_pool2d(x, 3, 2, 0, ceil_mode=True), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    case("average_pool_batch", "AveragePool", [R(2, 3, 6, 6)], lambda x: F.avg_pool2d(x, 2), kernel_shape=[2, 2], strides=[2, 2], symbols=[{0: "batch"}])
    case("global_average", "GlobalAveragePool", [R(2, 3, 4, 5)], lambda x: x.mean((2, 3), True))
    case("global_average_open", "GlobalAveragePool", [R(2, 3, 4, 5)], lambda x: x.mean((2, 3), True), symbols=[{0: "n", 2: "h", 3: "w"}])
    case("global_max", "GlobalMaxPool", [D(2, 3, 4, 5)], lambda x: x.amax((2, 3), True))

    def resize(name, x, scales, function, **attributes):
        case(f"resize_{name}", "Resize", [x, None, C(np.array(scales))], lambda x, s: function(x), **attributes)

    up = lambda **more: lambda x: F.interpolate(x, **more)
    resize("nearest", R(2, 3, 4, 5), [1, 1, 2, 3], up(scale_factor=(2, 3), mode="nearest"), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    resize("linear", R(2, 3, 4, 5), [1, 1, 2, 2], up(scale_factor=2, mode="bilinear"), mode="linear", coordinate_transformation_mode="half_pixel")
    resize("linear_corners", R(2, 3, 4, 5), [1, 1, 2, 2], up(scale_factor=2, mode="bilinear", align_corners=True), mode="linear", coordinate_transformation_mode="align_corners")
    resize("cubic", R(2, 3, 5, 6), [1, 1, 2, 2], up(scale_factor=2, mode="bicubic"), mode="cubic", coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.75)
    resize("down", R(2, 3, 6, 8), [1, 1, 0.5, 0.5], up(scale_factor=0.5, mode="bilinear"), mode="linear", coordinate_transformation_mode="half_pixel")
    case("resize_sizes", "Resize", [R(2, 3, 4, 5), None, None, I(2, 3, 7, 9)], lambda x, s: F.interpolate(x, size=(7, 9), mode="bilinear"), mode="linear", coordinate_transformation_mode="pytorch_half_pixel")


def recurrent():
    order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}  # PyTorch's gates, as places among ONNX's

    def regated(op, w, hidden):
        return torch.cat([w[g * hidden : (g + 1) * hidden] for g in order[op]], 0)

    def run(op, directions, hidden, x, w, r, b, h=None, c=None):
        network = getattr(torch.nn, op)(x.shape[2], hidden, bidirectional=directions == 2).double()
        values = {}
        for d in range(directions):
            tail = "_reverse" if d else ""
            gates = w.shape[1]
            values |= {f"weight_ih_l0{tail}": regated(op, w[d], hidden), f"weight_hh_l0{tail}": regated(op, r[d], hidden),
                       f"bias_ih_l0{tail}": regated(op, b[d][:gates], hidden), f"bias_hh_l0{tail}": regated(op, b[d][gates:], hidden)}
        state = None if h is None else ((h, c) if op == "LSTM" else h)
        y, last = torch.func.functional_call(network, values, (x, state))
        y = y.reshape(x.shape[0], x.shape[1], directions, hidden).permute(0, 2, 1, 3)
        return (y, *last) if op == "LSTM" else (y, last)

    for op, gates, more in [("LSTM", 4, {}), ("GRU", 3, dict(linear_before_reset=1)), ("RNN", 1, {})]:
        for directions in (1, 2):
            for with_state in (False, True):
                t, n, i, hidden = 4, 2, 3, 5
                inputs = [R(t, n, i), R(directions, gates * hidden, i), R(directions, gates * hidden, hidden), R(directions, 2 * gates * hidden)]
                if with_state:
                    inputs += [None, R(directions, n, hidden)] + ([R(directions, n, hidden)] if op == "LSTM" else [])
                kind = dict(direction="bidirectional") if directions == 2 else {}
                symbols = [] if with_state else [{1: "batch"}]
                case(f"{op.lower()}_{directions}{'_state' if with_state else ''}", op, inputs,
                     lambda *xs, op=op, d=directions, h=hidden: run(op, d, h, *xs), outputs=3 if op == "LSTM" else 2, hidden_size=hidden,
                     loose="forward", symbols=symbols, **more, **kind)


class Straight(torch.autograd.Function):
    """The identity within bounds, with a gradient of 0 beyond them."""

    @staticmethod
    def forward(ctx, x, low, high, result):
        ctx.save_for_backward((x > low) & (x < high))
        return result

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None, None, None


def quantisation():
    def run(x, scale, zero, low, high):
        q = torch.clamp(torch.round(x / scale) + zero, low, high)
        return Straight.apply(x, (low - 0.5 - zero) * scale, (high + 0.5 - zero) * scale, (q - zero) * scale)

    x = D(3, 4, 5)
    for name, zero, low, high in [("int8", np.int8(3), -128, 127), ("uint8", np.uint8(120), 0, 255)]:
        nodes = [node("QuantizeLinear", ["x0", "x1", "x2"], ["q"]), node("DequantizeLinear", ["q", "x1", "x2"], ["y0"])]
        case(f"quantise_{name}", None, [x, C(0.011), np.array(zero)], lambda x, s, z, low=low, high=high: run(x, s, int(z), low, high), nodes=nodes, loose="not")
    nodes = [node("QuantizeLinear", ["x0", "x1", "x2"], ["q"], axis=0), node("DequantizeLinear", ["q", "x1", "x2"], ["y0"], axis=0)]
    scales = np.array([0.01, 0.012, 0.02])
    case("quantise_channels", None, [x, C(scales), np.array([0, 0, 0], np.int8)],
         lambda x, s, z: run(x, s[:, None, None], 0, -128, 127), nodes=nodes, loose="not")

    # The learned step size (Esser et al. 2020): autograd through a rounding that passes gradients straight.
    def learned(x, s, z, low, high):
        whole = x / s
        whole = whole + (torch.round(whole) - whole).detach() + z
        # Whole numbers but for the last digit: a bound itself is within.
        return (torch.where(whole < low - 0.25, low, torch.where(whole > high + 0.25, high, whole)) - z) * s

    for name, zero, low, high in [("int8", np.int8(3), -128, 127), ("uint8", np.uint8(120), 0, 255)]:
        both = [node("QuantizeLinear", ["x0", "x1", "x2"], ["q"]), node("DequantizeLinear", ["q", "x1", "x2"], ["y0"])]
        case(f"step_size_{name}", None, [x, np.array(0.011), np.array(zero)],
             lambda x, s, z, low=low, high=high: learned(x, s, int(z), low, high), nodes=both, loose="not")
        case(f"step_size_of_one_{name}", None, [x, np.array([0.011]), np.array([zero])],
             lambda x, s, z, low=low, high=high: learned(x, s, int(z), low, high), nodes=both, loose="not")
    case("step_size_channels", None, [x, scales, np.array([0, 0, 0], np.int8)],
         lambda x, s, z: learned(x, s[:, None, None], 0, -128, 127), nodes=nodes, loose="not")
    # Weights by four bits in steps of their own: the parts that Edgeward's training graphs are made of.
    four = [node("Div", ["x0", "x1"], ["v"]), node("Clip", ["v", "low", "high"], ["c"]), node("QuantizeLinear", ["c", "one", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "one", "zero"], ["r"]), node("Mul", ["r", "x1"], ["y0"])]
    four = [node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.int8)))] + four
    case("step_size_four_bits", None, [x, np.array([0.1, 0.17, 0.3])[:, None, None], C(-7.0), C(7.0), C(1.0)],
         lambda x, s, low, high, one: torch.clamp(x / s, -7, 7).add((torch.round(torch.clamp(x / s, -7, 7)) - torch.clamp(x / s, -7, 7)).detach()) * s,
         nodes=[rename(n) for n in four], loose="not")


def rename(n):
    """Constants by the names that a case gives its inputs."""
    names = {"low": "x2", "high": "x3", "one": "x4"}
    n.input[:] = [names.get(name, name) for name in n.input]
    return n


def model(c, dtype):
    """The case's graph in f32 or f64."""
    kind, number = (np.float32, TensorProto.FLOAT) if dtype == "f32" else (np.float64, TensorProto.DOUBLE)
    inputs, constants = [], []
    for index, (name, value) in enumerate(c["inputs"].items()):
        if isinstance(value, C):
            # Resize takes its scales as float32 whatever it resizes.
            own = np.float32 if c["nodes"][0].op_type == "Resize" else kind
            constants.append(numpy_helper.from_array(value.array.astype(own), name))
        elif value.dtype != np.float64:
            constants.append(numpy_helper.from_array(value, name))
        else:
            symbols = c["symbols"][index] if index < len(c["symbols"]) else {}
            shape = [symbols.get(axis, size) for axis, size in enumerate(value.shape)]
            inputs.append(helper.make_tensor_value_info(name, number, shape))
    outputs = [helper.make_empty_tensor_value_info(name) for name in c["outputs"]]
    for output in outputs:
        output.type.tensor_type.elem_type = number
    if c["name"] == "top_k":
        outputs[1].type.tensor_type.elem_type = TensorProto.INT64
    graph = helper.make_graph(c["nodes"], c["name"], inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", c["opset"])], ir_version=8)


def wanted(c):
    """Names of the inputs that are differentiated by."""
    return [n for n, v in c["inputs"].items() if not isinstance(v, C) and v.dtype == np.float64]


def forward(c, values):
    given = [values[n] if n in values else torch.from_numpy(v.array if isinstance(v, C) else np.asarray(v)) for n, v in c["inputs"].items()]
    result = c["function"](*given)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def reference(c):
    """Outputs, seeds and gradients by PyTorch in f64."""
    values = {n: torch.from_numpy(c["inputs"][n].copy()).requires_grad_() for n in wanted(c)}
    outputs = forward(c, values)
    seeds = [torch.from_numpy(rng.uniform(-1, 1, tuple(y.shape))) for y in outputs]
    used = c["used"]
    gradients = torch.autograd.grad([outputs[i] for i in used if i < len(outputs)], list(values.values()), [seeds[i] for i in used if i < len(outputs)])
    return [y.detach().numpy() for y in outputs], [s.numpy() for s in seeds], [g.numpy() for g in gradients]


def write(folder):
    index, blob = [], bytearray()

    def put(name, array):
        array = np.asarray(array, np.float64)
        entry = dict(name=name, shape=list(array.shape), at=len(blob))
        blob.extend(array.tobytes())
        return entry

    for c in CASES:
        for dtype in ("f32", "f64"):
            onnx.save(model(c, dtype), folder / f"{c['name']}.{dtype}.onnx")
        outputs, seeds, gradients = reference(c)
        names = wanted(c)
        index.append(dict(name=c["name"], inputs=[put(n, c["inputs"][n]) for n in names], loose=bool(c["loose"]),
                          seeds=[put(c["outputs"][i], seeds[i]) for i in c["used"] if i < len(seeds)], gradients=[put(n, g) for n, g in zip(names, gradients)]))
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "values.bin").write_bytes(bytes(blob))


def differences(c, values, seeds):
    """The derivative along one direction, by the case's own graph in f64."""
    evaluator = ReferenceEvaluator(model(c, "f64"))
    direction = {n: rng.uniform(-1, 1, v.shape) for n, v in values.items()}
    step = 1e-5

    def at(sign):
        moved = {n: v + sign * step * direction[n] for n, v in values.items()}
        results = evaluator.run([c["outputs"][i] for i in c["used"]], moved)
        return sum((np.asarray(r, np.float64) * s).sum() for r, s in zip(results, seeds))

    return direction, (at(1) - at(-1)) / (2 * step)


def check(folder):
    index = {entry["name"]: entry for entry in json.loads((folder / "index.json").read_text())}
    blob = (folder / "values.bin").read_bytes()

    def get(entry):
        return np.frombuffer(blob, np.float64, int(np.prod(entry["shape"])), entry["at"]).reshape(entry["shape"]).copy()

    failed = []
    for c in CASES:
        entry = index[c["name"]]
        path = folder / f"{c['name']}.f64.vjp.onnx"
        if not path.exists() or c["loose"] == "not":
            continue
        values = {e["name"]: get(e) for e in entry["inputs"]}
        seeds = {f"gradient/{e['name']}": get(e) for e in entry["seeds"]}
        expected = [get(e) for e in entry["gradients"]]
        try:
            found = ReferenceEvaluator(onnx.load(path)).run([f"d/{n}" for n in values], {**values, **seeds})
        except Exception as error:
            failed.append(f"{c['name']}: the reference evaluator fails: {type(error).__name__}: {str(error)[:200]}")
            continue
        # Operators that the evaluator computes in f32 whatever it is given.
        bound = 1e-5 if c["loose"] is True else 1e-9
        for name, own, other in zip(values, found, expected):
            error = np.abs(own - other).max(initial=0) / max(np.abs(other).max(initial=0), 1e-3)
            if own.shape != other.shape or not error < bound:
                failed.append(f"{c['name']}: by {name}: {error:.2e} from PyTorch's, shapes {own.shape} {other.shape}")
        if not c["loose"]:
            direction, slope = differences(c, values, list(seeds.values()))
            own = sum((g * direction[n]).sum() for n, g in zip(values, found))
            if not abs(own - slope) < 1e-5 * max(abs(slope), 1):
                failed.append(f"{c['name']}: {own} against a finite difference of {slope}")
    print("\n".join(failed) or f"{len(CASES)} cases agree")
    sys.exit(bool(failed))


for group in (elementwise, products, arrangements, reductions, normalisations, convolutions, pools, recurrent, quantisation):
    group()
if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))
