"""GPTQ (Frantar et al. 2022, algorithm 1) column by column, by numpy in f64: JSON in, JSON out.

Straight from the paper: the inverse is made, its Cholesky factor taken, and every column's error handed on at once.
"""

import json
import sys

import numpy as np

told = json.load(sys.stdin)


def rounded(case):
    weight = np.array(case["weight"], dtype=np.float64).reshape(case["outputs"], case["inputs"])
    seen = np.array(case["seen"], dtype=np.float64).reshape(-1, case["inputs"])
    hessian = seen.T @ seen
    hessian += case["damping"] * np.mean(np.diag(hessian)) * np.eye(case["inputs"])
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    zero = 2.0 ** (case["bits"] - 1)
    result = np.zeros_like(weight)
    for i in range(case["inputs"]):
        if i % case["block"] == 0:
            block = weight[:, i : i + case["block"]]
            largest = block[np.arange(len(block)), np.argmax(np.abs(block), axis=1)]
            scale = np.float64(np.float32(largest) / np.float32(-zero))
        result[:, i] = np.clip(np.rint(weight[:, i] / scale), -zero, zero - 1) * scale
        error = (weight[:, i] - result[:, i]) / upper[i, i]
        weight[:, i:] -= np.outer(error, upper[i, i:])
    return result


print(json.dumps([rounded(case).ravel().tolist() for case in told]))
