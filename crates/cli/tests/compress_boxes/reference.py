"""Average precision of a YOLOX model by ONNX Runtime, numpy and pycocotools: `reference.py MODEL INPUTS.npz ANNOTATIONS.json`."""
import contextlib
import json
import sys

import numpy as np
import onnxruntime
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SCORE, SUPPRESS, MOST = 0.001, 0.45, 100


def iou(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    area = lambda b: np.prod(b[..., 2:] - b[..., :2], axis=-1)
    return both / (area(box) + area(boxes) - both)


def boxes(output, side):
    output = output.astype(np.float64)
    cells = np.concatenate([np.stack(np.meshgrid(range(side // s), range(side // s)), 2).reshape(-1, 2) for s in (8, 16, 32)])
    strides = np.concatenate([np.full(((side // s) ** 2, 1), s) for s in (8, 16, 32)])
    centre, size = (output[:, :2] + cells) * strides, np.exp(output[:, 2:4]) * strides
    scores = output[:, 4:5] * output[:, 5:]
    kind, score = scores.argmax(1), scores.max(1)
    corners = np.concatenate([centre - size / 2, centre + size / 2], 1)
    kept = []
    for i in np.argsort(-score, kind="stable"):
        if score[i] < SCORE or len(kept) == MOST:
            break
        same = [j for j in kept if kind[j] == kind[i]]
        if not same or iou(corners[i], corners[same]).max() <= SUPPRESS:
            kept.append(i)
    return [([*corners[i, :2], *(corners[i, 2:] - corners[i, :2])], int(kind[i]), float(score[i])) for i in kept]


model, inputs, annotations = sys.argv[1:]
(images,) = np.load(inputs).values()
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
with contextlib.redirect_stdout(sys.stderr):
    truth = COCO(annotations)
    categories = sorted(truth.getCatIds())
    found = []
    for number, image in zip([image["id"] for image in truth.dataset["images"]], images):
        output = session.run(None, {session.get_inputs()[0].name: image[None]})[0][0]
        found += [{"image_id": number, "bbox": box, "category_id": categories[kind], "score": score}
                  for box, kind, score in boxes(output, images.shape[-1])]
    judged = COCOeval(truth, truth.loadRes(found), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
print(json.dumps(judged.stats[0]))
