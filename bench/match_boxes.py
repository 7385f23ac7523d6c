"""Detections of a YOLOX model that match those of its original: `match_boxes.py ORIGINAL INPUTS.npz ENGINE MODEL`.

Boxes as YOLOX has them (strides 8, 16, 32; score = objectness × class; suppression at IoU 0.45 within a class, scores from 0.3). Of a pair
of the same class an IoU of 0.5 is a match, each box once. Prints the matched part of the boxes of both: 2 · matched / (original + model).
"""
import sys

import numpy as np
import onnxruntime
import openvino

SCORE, SUPPRESS, MATCH = 0.3, 0.45, 0.5


def runner(engine: str, model: str):
    if engine == "openvino":
        compiled = openvino.Core().compile_model(model, "CPU")
        return lambda inputs: compiled(inputs)[0]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def iou(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    area = lambda b: np.prod(b[..., 2:] - b[..., :2], axis=-1)
    return both / (area(box) + area(boxes) - both)


def boxes(output: np.ndarray, side: int):
    cells, strides = [], []
    for stride in (8, 16, 32):
        n = side // stride
        x, y = np.meshgrid(np.arange(n), np.arange(n))
        cells.append(np.stack([x, y], 2).reshape(-1, 2))
        strides.append(np.full((n * n, 1), stride))
    cells, strides = np.concatenate(cells), np.concatenate(strides)
    centre, size = (output[:, :2] + cells) * strides, np.exp(output[:, 2:4]) * strides
    scores = output[:, 4:5] * output[:, 5:]
    kind, score = scores.argmax(1), scores.max(1)
    found = []
    corners = np.concatenate([centre - size / 2, centre + size / 2], 1)
    for i in np.argsort(-score):
        if score[i] < SCORE:
            break
        same = np.array([box for box, k in found if k == kind[i]])
        if len(same) == 0 or iou(corners[i], same).max() < SUPPRESS:
            found.append((corners[i], kind[i]))
    return found


original, inputs, engine, model = sys.argv[1:]
arrays = np.load(inputs)
(name,) = arrays.files
images = arrays[name]
first, second = runner("onnxruntime", original), runner(engine, model)
matched = count = 0
for image in images:
    ours, theirs = (boxes(run({name: image[None]})[0], images.shape[-1]) for run in (first, second))
    count += len(ours) + len(theirs)
    for box, kind in ours:
        left = [i for i, (_, k) in enumerate(theirs) if k == kind]
        if left:
            overlaps = iou(box, np.array([theirs[i][0] for i in left]))
            if overlaps.max() >= MATCH:
                matched += 1
                theirs.pop(left[overlaps.argmax()])
print(2 * matched / max(count, 1), count)
