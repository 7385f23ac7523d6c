"""COCO's mean average precision of each case, by pycocotools: JSON in, JSON out; null where nothing is there."""
import contextlib
import json
import sys

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def precision(images):
    truth, found = COCO(), []
    annotations = []
    for number, image in enumerate(images, 1):
        for box in image["truths"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": box["class"] + 1, "bbox": box["bbox"],
                                "area": box["bbox"][2] * box["bbox"][3], "iscrowd": int(box["crowd"])})
        found += [{"image_id": number, "category_id": box["class"] + 1, "bbox": box["bbox"], "score": box["score"]}
                  for box in image["found"]]
    truth.dataset = {"images": [{"id": number} for number in range(1, len(images) + 1)], "annotations": annotations,
                     "categories": [{"id": number} for number in range(1, 5)]}
    truth.createIndex()
    if not found:
        return 0.0 if any(not box["iscrowd"] for box in annotations) else None
    judged = COCOeval(truth, truth.loadRes(found), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    return float(judged.stats[0]) if judged.stats[0] >= 0 else None


with contextlib.redirect_stdout(sys.stderr):
    said = [precision(images) for images in json.load(sys.stdin)]
print(json.dumps(said))
