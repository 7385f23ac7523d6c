"""Whether real models answer through the server what they were trained for: `answers.py HTTP_ADDRESS DATA TASK`."""
import gzip
import pathlib
import sys
import wave

import numpy as np
import tritonclient.http as http
from PIL import Image

# The MNIST model was trained for a moment only; its source states 74.6 % on the first 1,000 test images.
MNIST_IMAGES, MNIST_ACCURACY = 1000, 0.746


class Caller:
    def __init__(self, address: str, model: str):
        self.client, self.model = http.InferenceServerClient(address), model

    def __call__(self, *outputs: str, **inputs: np.ndarray):
        wire = {"float32": "FP32", "int64": "INT64"}
        tensors = []
        for name, values in inputs.items():
            tensor = http.InferInput(name, list(values.shape), wire[str(values.dtype)])
            tensor.set_data_from_numpy(np.asarray(values, order="C"))
            tensors.append(tensor)
        answer = self.client.infer(self.model, tensors)
        return [answer.as_numpy(name) for name in outputs]


def idx(path: pathlib.Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def mnist(address: str, data: pathlib.Path) -> None:
    images = idx(data / "mnist/t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 1, 28, 28)[:MNIST_IMAGES]
    labels = idx(data / "mnist/t10k-labels-idx1-ubyte.gz", 8)[:MNIST_IMAGES]
    ask = Caller(address, "mnist_rten")
    pixels = ((images / 255.0 - 0.1307) / 0.3081).astype(np.float32)
    right = sum(int(ask("logits", input=image)[0].argmax() == label) for image, label in zip(pixels, labels))
    accuracy = right / len(labels)
    print(f"accuracy {accuracy:.3f} of {len(labels)} images")
    assert abs(accuracy - MNIST_ACCURACY) <= 0.001


def silero(address: str, data: pathlib.Path) -> None:
    """The caller keeps the state between windows of 32 ms and puts the last 4 ms of each before the next."""
    with wave.open(gzip.open(data / "onnx/silero_test.wav.gz"), "rb") as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    ask = Caller(address, "silero_vad_16k_op15")
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    speech, loudness = [], []
    for start in range(0, len(sound) - 512, 512):
        window = sound[start : start + 512]
        probability, state = ask(
            "output", "stateN", input=np.concatenate([before, window])[None], state=state, sr=np.array(16000)
        )
        before = window[-64:]
        speech.append(probability.item())
        loudness.append(float(np.sqrt((window**2).mean())))
    order, tenth = np.argsort(loudness), len(loudness) // 10
    quiet, loud = (np.asarray(speech)[part].mean() for part in (order[:tenth], order[-tenth:]))
    print(f"speech probability {quiet:.3f} in the quietest tenth, {loud:.3f} in the loudest")
    assert quiet < 0.1 and loud > 0.95


# A man's head in profile, in the pixels of this photo of 1280 x 960.
HORSES, FACE = "photos/rten_horses.jpeg", (1140, 1200, 330, 390)


def inside(x: float, y: float) -> bool:
    return FACE[0] < x < FACE[1] and FACE[2] < y < FACE[3]


def ultraface(address: str, data: pathlib.Path) -> None:
    photo = Image.open(data / HORSES).convert("RGB")
    pixels = (np.asarray(photo.resize((320, 240)), np.float32) - 127) / 128
    scores, boxes = Caller(address, "ultraface_rfb_320")("scores", "boxes", input=pixels.transpose(2, 0, 1)[None])
    best = scores[0, :, 1].argmax()
    x, y = boxes[0, best].reshape(2, 2).mean(0) * photo.size
    print(f"face: score {scores[0, best, 1]:.2f} at {x:.0f}, {y:.0f}")
    assert scores[0, best, 1] > 0.8 and inside(x, y)


def yunet_centres() -> np.ndarray:
    """Centre and size of each anchor of YuNet at 160 x 120, by its strides and smallest sizes."""
    anchors = []
    for stride, sizes in ((8, (10, 16, 24)), (16, (32, 48)), (32, (64, 96)), (64, (128, 192, 256))):
        # Two halvings come first, rounding down; each further one rounds up.
        rows, columns = 60 // 2, 80 // 2
        for _ in range(int(np.log2(stride)) - 2):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        for row in range(rows):
            for column in range(columns):
                anchors += [((column + 0.5) * stride, (row + 0.5) * stride, size) for size in sizes]
    return np.array(anchors)


def yunet(address: str, data: pathlib.Path) -> None:
    """Small faces are lost at 160 x 120, so a part of the photo is asked about, and one of sky and field."""
    photo = Image.open(data / HORSES).convert("RGB")
    ask = Caller(address, "yunet_face_120x160")

    def best(left: int, top: int):
        part = photo.crop((left, top, left + 240, top + 180)).resize((160, 120))
        pixels = np.asarray(part, np.float32)[:, :, ::-1].transpose(2, 0, 1)[None]
        places, classes, overlaps = ask("loc", "conf", "iou", input=pixels)
        scores = np.sqrt(classes[:, 1] * overlaps[:, 0].clip(0, 1))
        first = scores.argmax()
        x, y, size = yunet_centres()[first]
        x, y = x + places[first, 0] * 0.1 * size, y + places[first, 1] * 0.1 * size
        return scores[first], left + x * 1.5, top + y * 1.5

    score, x, y = best(1020, 270)
    elsewhere = best(0, 0)[0]
    print(f"face: score {score:.2f} at {x:.0f}, {y:.0f}; {elsewhere:.2f} in the sky")
    assert score > 0.9 and inside(x, y)
    assert elsewhere < 0.5


def person(address: str, data: pathlib.Path) -> None:
    ask = Caller(address, "person_detector_yolox")

    def best(name: str) -> float:
        photo = Image.open(data / "photos" / name).convert("RGB")
        ratio = 192 / max(photo.size)
        small = photo.resize((round(photo.width * ratio), round(photo.height * ratio)))
        canvas = np.full((192, 192, 3), 114, np.float32)
        canvas[: small.height, : small.width] = np.asarray(small)[:, :, ::-1]
        (output,) = ask("output", images=canvas.transpose(2, 0, 1)[None])
        return float((output[0, :, 4] * output[0, :, 5]).max())

    there, not_there = best("person.jpg"), best("dog.jpg")
    print(f"person: {there:.2f} where there is one, {not_there:.2f} where there is none")
    assert there > 0.7 and not_there < 0.2


TASKS = {task.__name__: task for task in (mnist, silero, ultraface, yunet, person)}

TASKS[sys.argv[3]](sys.argv[1], pathlib.Path(sys.argv[2]))
print("ok")
