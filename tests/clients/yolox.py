"""YOLOX-Nano through the server finds the dog, the bicycle and the car: `yolox.py HTTP_ADDRESS PHOTO`."""
import sys

import numpy as np
import tritonclient.http as http
from PIL import Image

SIZE, BICYCLE, CAR, TRUCK, DOG = 416, 1, 2, 7, 16


def letterbox(path):
    photo = Image.open(path).convert("RGB")
    ratio = min(SIZE / photo.width, SIZE / photo.height)
    small = photo.resize((round(photo.width * ratio), round(photo.height * ratio)), Image.BILINEAR)
    canvas = np.full((SIZE, SIZE, 3), 114, np.float32)
    canvas[: small.height, : small.width] = np.asarray(small, np.float32)[:, :, ::-1]
    return canvas.transpose(2, 0, 1)[None], ratio


def detections(output, ratio):
    """Best box per class: (score, centre x, centre y) in the photo's pixels. Raw outputs are relative to grid cells."""
    grids, strides = [], []
    for stride in (8, 16, 32):
        n = SIZE // stride
        y, x = np.mgrid[:n, :n]
        grids.append(np.stack([x.ravel(), y.ravel()], 1))
        strides.append(np.full((n * n, 1), stride))
    grid, stride = np.concatenate(grids), np.concatenate(strides)
    centre = (output[:, :2] + grid) * stride / ratio
    scores = output[:, 4:5] * output[:, 5:]
    best = scores.argmax(0)
    return {c: (scores[i, c], *centre[i]) for c, i in enumerate(best)}


image, ratio = letterbox(sys.argv[2])
client = http.InferenceServerClient(sys.argv[1])
tensor = http.InferInput("images", list(image.shape), "FP32")
tensor.set_data_from_numpy(image.astype(np.float32))
output = client.infer("yolox_nano_416", [tensor]).as_numpy("output")[0]
found = detections(output, ratio)
for name, (score, x, y) in {"dog": found[DOG], "bicycle": found[BICYCLE], "car": max(found[CAR], found[TRUCK])}.items():
    print(f"{name}: score {score:.2f} at {x:.0f}, {y:.0f}")
    assert score > 0.4, name
# Where they stand in this photo of 768 x 576: the dog in front on the left, the car at the top on the right.
assert 130 < found[DOG][1] < 330 and 220 < found[DOG][2] < 540
assert max(found[CAR], found[TRUCK])[1] > 460
print("ok")
