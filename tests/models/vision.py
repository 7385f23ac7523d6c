"""Image classifiers with the shapes of the published ones and made-up weights."""
import numpy as np

from builder import FLOAT, Builder

# Expansion, channels, repeats, stride: table 2 of MobileNetV2 (arXiv 1801.04381).
MOBILENET_BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
# Width, blocks, stride: table 1 of ResNet (arXiv 1512.03385), 50 layers.
RESNET_STAGES = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]

IMAGE = ("image", FLOAT, ["batch", 3, 224, 224])
CLASSES = ("logits", FLOAT, ["batch", 1000])


def head(g: Builder, x: str, channels: int) -> None:
    pooled = g.node("Flatten", g.node("GlobalAveragePool", x), axis=1)
    weights = g.normal((1000, channels), (1.0 / channels) ** 0.5)
    g.node("Gemm", pooled, weights, g.normal((1000,), 0.02), to="logits", transB=1)


def bottleneck(g: Builder, x: str, channels: int, width: int, stride: int) -> str:
    y = g.node("Relu", g.conv(x, channels, width, 1))
    y = g.node("Relu", g.conv(y, width, width, 3, stride))
    # A small last gain keeps sixteen residual sums from growing.
    y = g.conv(y, width, width * 4, 1, gain=0.2)
    if channels != width * 4:
        x = g.conv(x, channels, width * 4, 1, stride, gain=0.7)
    return g.node("Relu", g.node("Add", x, y))


def resnet50():
    g = Builder(50)
    x = g.node("Relu", g.conv("image", 3, 64, 7, 2))
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, blocks, stride in RESNET_STAGES:
        for block in range(blocks):
            x = bottleneck(g, x, channels, width, stride if block == 0 else 1)
            channels = width * 4
    head(g, x, channels)
    return g.model("resnet50", [IMAGE], [CLASSES])


def mobilenetv2():
    g = Builder(2)
    low, high = g.constant(np.float32(0)), g.constant(np.float32(6))
    relu6 = lambda x: g.node("Clip", x, low, high)
    x = relu6(g.conv("image", 3, 32, 3, 2))
    channels = 32
    for expand, out, repeats, stride in MOBILENET_BLOCKS:
        for block in range(repeats):
            step = stride if block == 0 else 1
            y = relu6(g.conv(x, channels, channels * expand, 1)) if expand > 1 else x
            y = relu6(g.conv(y, channels * expand, channels * expand, 3, step, groups=channels * expand))
            y = g.conv(y, channels * expand, out, 1, gain=0.5)
            x = g.node("Add", x, y) if step == 1 and channels == out else y
            channels = out
    x = relu6(g.conv(x, channels, 1280, 1))
    head(g, x, 1280)
    return g.model("mobilenetv2", [IMAGE], [CLASSES])

