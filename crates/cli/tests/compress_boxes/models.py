"""Small detectors that put out what is told of them, whatever the picture of 64 pixels shows, and inputs: `models.py`, into the current folder."""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T, helper, numpy_helper
from PIL import Image

random = np.random.default_rng(0)
CELLS, SIDE = 84, 64


def convolution(image, stride, **more):
    return helper.make_node("Conv", [image, "w"], ["f"], strides=[stride] * 2, dilations=[1, 1], pads=[0] * 4, **more)


def write(name, nodes, inputs, outputs, inits):
    infos = [[helper.make_tensor_value_info(key, kind, shape) for key, kind, shape in infos] for infos in (inputs, outputs)]
    graph = helper.make_graph(nodes, name, *infos, [numpy_helper.from_array(np.asarray(value), key) for key, value in inits.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, f"{name}.onnx")


def save(name, outputs, image=("n", 3, SIDE, SIDE), more=(), nodes=(), before="image"):
    """A model with these outputs, to which the mean of a convolution is added, times nothing."""
    inits = {"w": (random.normal(size=(8, image[-3], 8, 8)) * 0.05).astype(np.float32), "none": np.float32(0), "each": np.array([-1, 1, 1])}
    all = [*nodes, convolution(before, 8), helper.make_node("ReduceMean", ["f"], ["m"], axes=[1, 2, 3]),
           helper.make_node("Reshape", ["m", "each"], ["r"]), helper.make_node("Mul", ["r", "none"], ["z"])]
    infos = []
    for output, value in outputs.items():
        of, whole = f"{output}_of", value.dtype == np.int64
        inits[of] = value if whole else value.astype(np.float32)
        if whole:
            all.append(helper.make_node("Identity", [of], [output]))
        elif value.ndim == 3:
            all.append(helper.make_node("Add", [of, "z"], [output]))
        else:
            all += [helper.make_node("ReduceMax", ["z"], [f"{output}_z"], keepdims=0), helper.make_node("Add", [of, f"{output}_z"], [output])]
        infos.append((output, T.INT64 if whole else T.FLOAT, ("n", *value.shape[1:]) if value.ndim == 3 else value.shape))
    write(name, all, [(key, T.FLOAT, shape) for key, shape in [*more, ("image", image)]], infos, inits)


def lines(*values):
    return np.tile(np.array(values, np.float32), (1, CELLS, 1))


corners = np.array([[[x, y, x + 24, y + 24] for y in range(0, 40, 8) for x in range(0, 40, 8)]], np.float32)
scores = lambda *one: np.tile(np.array(one, np.float32), (1, corners.shape[1], 1))

# Centres and sizes in pixels: decoded YOLOX, YOLOv6.
save("decoded", {"output": lines(30, 20, 24, 18, 0.9, 0.8, 0.1)})
# DETR: logits, and centres with sizes.
save("detr", {"logits": scores(-3, 0.5, -1), "pred_boxes": np.tile(np.float32([0.5, 0.5, 0.2, 0.3]), (1, 25, 1))})
# One logit of many, of a cell that suppression would leave out.
logits = scores(0.9, 0.0, 0.5)
logits[0, 7, 1] = -2
save("logits", {"logits": logits, "boxes": corners})
# A softmax of bytes, one cell of which is no number; the names hold `loc` and `box` as parts of other words.
softmax = scores(0.6, 0.3, 0.1, 0.02)
softmax[0, 3, 2] = np.nan
save("softmax", {"block_cls": softmax, "loc0": corners / 64})
save("unnamed", {"block": softmax, "other": corners})
save("six", {"boxes": corners, "scores": scores(0.9, 0.3)}, image=("n", 6, SIDE, SIDE))
save("lines", {"output": np.tile(np.float32([30, 20, 8, 8, 0.9, 0.1])[None, :, None], (1, 1, CELLS))}, more=[("text", ("n", 77, 16))])
# Suppressed in the graph: of two pictures in a run, of one with a batch, and of one without.
found = {"boxes": corners[0, :6], "scores": np.linspace(0.9, 0.4, 6), "labels": np.array([1, 2, 3] * 2)}
save("two", found, image=(2, 3, SIDE, SIDE))
save("found", found)
first = helper.make_node("Constant", [], ["first"], value=numpy_helper.from_array(np.array([0])))
unsqueeze = helper.make_node("Unsqueeze", ["image", "first"], ["batch"])
save("single", found, image=(3, SIDE, SIDE), nodes=[first, unsqueeze], before="batch")
# Of a black picture there are no cells.
node = helper.make_node
nodes = [convolution("image", 1), node("ReduceMean", ["f"], ["m"], keepdims=0), node("Add", ["m", "nothing"], ["each"]),
         node("Greater", ["each", "least"], ["some"]), node("NonZero", ["some"], ["places"]), node("Reshape", ["places", "flat"], ["cells"]),
         node("Gather", ["all_boxes", "cells"], ["boxes"], axis=1), node("Gather", ["all_scores", "cells"], ["scores"], axis=1)]
inits = {"w": np.full((1, 3, 1, 1), 0.3, np.float32), "nothing": np.zeros(25, np.float32), "least": np.float32(0.01), "flat": np.array([-1]),
         "all_boxes": corners, "all_scores": scores(0.9, 0.3, 0.2)}
write("late", nodes, [("image", T.FLOAT, (1, 3, SIDE, SIDE))], [("boxes", T.FLOAT, (1, "k", 4)), ("scores", T.FLOAT, (1, "k", 3))], inits)

images = random.random((4, 3, SIDE, SIDE)).astype(np.float32)
images[0] = 0
text = random.random((4, 77, 16)).astype(np.float32)
np.savez("images.npz", image=images)
np.savez("black.npz", image=images[:1])
np.savez("alone.npz", image=images[1])
np.savez("six.npz", image=np.concatenate([images, images], 1))
np.savez("text.npz", text=text, image=images)
np.savez("uneven.npz", text=text[:3], image=images)
np.savez("misspelt.npz", images=images)
for at in range(4):
    folder = Path("labelled") / "ab"[at % 2]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{at}.png")
