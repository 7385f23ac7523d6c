"""Photos, their parts and mirror images as a detector takes them: `photo_inputs.py FOLDER INPUT SIDE OUTPUT.npz`.

Letterboxed from the top left, blue first, 0 to 255, as YOLOX was trained.
"""
import pathlib
import sys

import numpy as np
from PIL import Image, ImageOps

PARTS = [(0, 0, 1, 1), (.1, .1, .9, .9), (0, 0, .7, .7), (.3, .3, 1, 1)]


def letterboxed(image: Image.Image, side: int) -> np.ndarray:
    canvas = Image.new("RGB", (side, side), (114, 114, 114))
    canvas.paste(ImageOps.contain(image, (side, side)))
    return np.asarray(canvas)[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)


def views(path: pathlib.Path):
    image = Image.open(path).convert("RGB")
    for left, top, right, bottom in PARTS:
        part = image.crop((int(left * image.width), int(top * image.height), int(right * image.width),
                           int(bottom * image.height)))
        yield part
        yield ImageOps.mirror(part)


folder, name, side, output = sys.argv[1:]
photos = sorted(path for path in pathlib.Path(folder).iterdir() if path.suffix in (".jpg", ".jpeg"))
np.savez(output, **{name: np.stack([letterboxed(view, int(side)) for path in photos for view in views(path)])})
