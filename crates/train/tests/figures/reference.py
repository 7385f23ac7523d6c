"""Figures of classifiers by scikit-learn; the calibration error, which it lacks, by the formula of Guo et al. 2017."""
import json
import sys

import numpy as np
from sklearn import metrics


def calibration_error(probabilities, labels, bins=15):
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs((predicted[inside] == labels[inside]).mean() - confidence[inside].mean())
    return total


def figures(case):
    probabilities, labels = np.array(case["probabilities"]), np.array(case["labels"])
    classes = list(range(probabilities.shape[1]))
    predicted = probabilities.argmax(1)
    whole = len(set(labels)) == len(classes)
    auc = None
    if whole:
        scores = probabilities[:, 1] if len(classes) == 2 else probabilities
        auc = metrics.roc_auc_score(labels, scores, multi_class="ovr", labels=classes if len(classes) > 2 else None)
    macro = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    return {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "f1": metrics.f1_score(labels, predicted, zero_division=0) if len(classes) == 2 else macro,
        "f1_macro": macro,
        "auc": auc,
        "log_loss": metrics.log_loss(labels, probabilities, labels=classes),
        "calibration_error": calibration_error(probabilities, labels),
        "confusion": metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


json.dump([figures(case) for case in json.load(sys.stdin)], sys.stdout)
