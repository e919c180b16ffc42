"""The metrics of GLUE, with a rule for ties that makes a constant model score exactly chance.

Where k classes of an item have the same, largest logit, each of them is predicted with weight 1/k. The weights enter
accuracy and the confusion matrix of F1 and of Matthews' correlation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def predicted_shares(logits_NC: np.ndarray) -> np.ndarray:
    """The predicted class of each item as weights [N, C]: 1 for the class with the largest logit, or 1/k for each of k
    tied classes."""
    best_NC = logits_NC == logits_NC.max(1, keepdims=True)
    return best_NC / best_NC.sum(1, keepdims=True)


def classification_metrics(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """The metrics of a classification: {"accuracy"}; for two classes also "f1" (of class 1) and "mcc" (Matthews'
    correlation). `logits_NC`: the logits of N items for C classes; `labels_N`: the index of the true class of each
    item."""
    share_NC = predicted_shares(logits_NC)
    scores = {"accuracy": float(share_NC[np.arange(len(labels_N)), labels_N].mean())}
    if logits_NC.shape[1] == 2:
        true = labels_N == 1
        tp, fn = float(share_NC[true, 1].sum()), float(share_NC[true, 0].sum())
        fp, tn = float(share_NC[~true, 1].sum()), float(share_NC[~true, 0].sum())
        scores["f1"] = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        # 0 where the predictions, or the labels, are of one class; and not a rounding error of that
        scores["mcc"] = (tp * tn - fp * fn) / product**0.5 if product else 0.0
    return scores


def regression_metrics(predictions_N: np.ndarray, targets_N: np.ndarray) -> dict[str, float]:
    """The correlations of predictions and targets, {"pearson", "spearman"}; 0 where all predictions, or all targets,
    are equal."""
    from scipy.stats import rankdata

    return {
        "pearson": pearson_correlation(predictions_N, targets_N),
        "spearman": pearson_correlation(rankdata(predictions_N), rankdata(targets_N)),
    }


def pearson_correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    if np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return 0.0
    return float(np.corrcoef(np.asarray(a_N, float), np.asarray(b_N, float))[0, 1])


def chance_metrics(labels: Sequence[float], classes: int) -> dict[str, float]:
    """The metrics of a model with the same outputs for every item, so that all classes are tied: {metric: value}.
    `labels`: the class index, or the regression target, of each item; `classes`: the number of classes; 0 for a
    regression."""
    if not classes:
        return {"pearson": 0.0, "spearman": 0.0}
    return classification_metrics(np.zeros((len(labels), classes)), np.array(labels, int))


def metrics_per_constant_class(labels: Sequence[float], classes: int) -> list[dict[str, float]]:
    """The metrics of models that always predict one class: a list with {metric: value} for each class; [] for a
    regression. `labels` and `classes` are as in `chance_metrics`."""
    return [
        classification_metrics(np.tile(np.eye(classes)[one], (len(labels), 1)), np.array(labels, int))
        for one in range(classes)
    ]


def is_collapsed(outputs: np.ndarray) -> bool:
    """Whether a model predicts the same for all items, which means that training failed. `outputs`: the logits [N, C]
    of N items, or the scores [N] of a regression."""
    if outputs.ndim == 1:
        return bool(np.ptp(outputs) < 1e-3)  # of a scale from 0 to 5
    share_NC = predicted_shares(outputs)
    return bool((share_NC == share_NC[0]).all())


NINE_SCORES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli-mm", "qnli", "rte")


def glue_means(scores: dict[str, float]) -> dict[str, Any]:
    """The mean score over GLUE, in two ways. "nine_numbers" counts both evaluation sets of MNLI, as "Cramming" does.
    "eight_tasks" averages these two first, as the leaderboard does.

    Args:
        scores: {name in NINE_SCORES: score}. Missing scores are left out of the means.

    Returns:
        nine_numbers, eight_tasks: the two means; None without scores.
        numbers: the number of scores.
    """
    present = {name: scores[name] for name in NINE_SCORES if name in scores}
    if not present:
        return {"nine_numbers": None, "eight_tasks": None, "numbers": 0}
    tasks: dict[str, list[float]] = {}
    for name, score in present.items():
        tasks.setdefault(name.removesuffix("-mm"), []).append(score)
    return {
        "nine_numbers": float(np.mean(list(present.values()))),
        "eight_tasks": float(np.mean([np.mean(values) for values in tasks.values()])),
        "numbers": len(present),
    }
