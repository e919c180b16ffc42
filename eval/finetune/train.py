"""Fine-tunes on one task of GLUE with one seed: trains a classifier on the task's training set, and scores it on the
evaluation sets."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ablations import rundir, safe_files
from eval.finetune import metrics
from eval.finetune.classifier import Classifier, pad
from eval.finetune.tasks import TASKS, Example, find_split, load_split

MAX_EPOCHS = 5  # a rule of "Cramming": fine-tuning is short, and with one setting for all tasks


@dataclass(frozen=True)
class Setting:
    """The hyperparameters of fine-tuning, the same for every task. The defaults are those of "Cramming"
    (config/eval/GLUE_sane.yaml of its release)."""

    epochs: int = 5  # the last one counts: no early stop
    batch: int = 16  # sequences
    lr: float = 4e-5  # peak
    warmup: float = 0.1  # share of the task's own steps; then a cosine to 0
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.0
    dropout: float = 0.1  # in the classifier, and of a model of ours as model.dropout
    attn_dropout: float = 0.1  # of a model of ours as model.attn_dropout (config/arch/crammed-bert.yaml; BERT)
    longest: int = 128  # tokens of an input
    pooling: str = "last"

    def steps(self, items: int) -> int:
        """The number of optimizer steps of a fine-tuning. `items`: the number of training items."""
        return self.epochs * -(-items // self.batch)

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= MAX_EPOCHS:
            raise ValueError(f"epochs={self.epochs}: from 1 to {MAX_EPOCHS}, a rule of the challenge")
        if self.batch < 1 or self.longest < 8 or not 0 <= self.warmup < 1 or self.lr <= 0:
            raise ValueError("a batch of 1 at least, inputs of 8 tokens at least, a warm-up below 1, a rate above 0")


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate at a step, as a fraction of the peak: linear warm-up from 0, then cosine decay to 0. `step`:
    the number of the step, from 0; `steps`: the number of all steps; `warmup`: the fraction of the steps that warm
    up."""
    rising = int(warmup * steps)
    if step < rising:
        return step / max(1, rising)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def epoch_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch, each a list of indices of items.

    Items are shuffled and divided into pools of BATCHES_PER_POOL batches. Within a pool they are sorted by length, to
    reduce padding. Then the batches are shuffled. The result depends only on the arguments.

    Args:
        lengths: the number of tokens of each item.
        size: the number of items of a batch.
        seed: the seed of the fine-tuning.
        epoch: the number of the epoch, from 0.
    """
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    grouped = []
    for start in range(0, len(order), BATCHES_PER_POOL * size):
        pool = sorted(order[start : start + BATCHES_PER_POOL * size], key=lambda i: lengths[i])
        grouped += [pool[i : i + size] for i in range(0, len(pool), size)]
    rng.shuffle(grouped)
    return grouped


BATCHES_PER_POOL = 50  # batches that are sorted by length together; untuned


def training_loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """The training loss of a batch: the cross-entropy, or the mean squared error where there is one output (a
    regression). `labels_B`: class indices, or regression targets."""
    if logits_BC.shape[1] == 1:
        return F.mse_loss(logits_BC[:, 0], labels_B)
    return F.cross_entropy(logits_BC, labels_B.long())


def train(
    model: Classifier,
    rows: Sequence[Sequence[int]],
    labels: Sequence[float],
    setting: Setting,
    seed: int,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> list[float]:
    """Fine-tune a classifier in place. Returns the loss of each step.

    Args:
        model: the classifier.
        rows: the token ids of each training item.
        labels: the class index, or the regression target, of each training item.
        setting: the hyperparameters.
        seed: the seed of the order of items and of dropout.
        progress: a function that is called after every step with the number of finished steps and of all steps.

    Raises:
        ValueError: the loss is NaN or infinite.
    """
    device = next(model.parameters()).device
    torch.manual_seed(seed)  # of dropout
    optimizer = torch.optim.AdamW(
        model.parameters(), setting.lr, (setting.beta1, setting.beta2), setting.eps, weight_decay=setting.weight_decay
    )
    lengths = [len(row) for row in rows]
    steps, step = setting.steps(len(rows)), 0
    losses: list[float] = []
    model.train()
    for epoch in range(setting.epochs):
        for items in epoch_batches(lengths, setting.batch, seed, epoch):
            for group in optimizer.param_groups:
                group["lr"] = setting.lr * learning_rate_factor(step, steps, setting.warmup)
            batch = pad([rows[i] for i in items])
            labels_B = torch.tensor([labels[i] for i in items], device=device)
            value = training_loss(model(type(batch)(*(x.to(device) for x in batch))), labels_B)
            losses.append(value.item())
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]} in step {step} of fine-tuning")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            step += 1
            progress(step, steps)
    return losses


@torch.inference_mode()
def predict_logits(
    model: Classifier, rows: Sequence[Sequence[int]], side: str = "right", batch: int = 64
) -> np.ndarray:
    """The logits [N, C] of N items, in the order of `rows`. They are computed in batches of items of similar length.

    Args:
        model: the classifier.
        rows: the token ids of each item.
        side: where padding goes, "right" or "left".
        batch: the number of items of a batch.
    """
    device = next(model.parameters()).device
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    logits_NC: np.ndarray | None = None
    for start in range(0, len(order), batch):
        items = order[start : start + batch]
        padded = pad([rows[i] for i in items], side)
        values = model(type(padded)(*(x.to(device) for x in padded))).float().cpu().numpy()
        logits_NC = np.zeros((len(rows), values.shape[1])) if logits_NC is None else logits_NC
        logits_NC[items] = values
    assert logits_NC is not None
    return logits_NC


def score_predictions(logits_NC: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
    """The results on one evaluation set. Raises ValueError where a logit is NaN or infinite.

    Args:
        logits_NC: the logits of N items for C classes, or [N, 1] for a regression.
        examples: the items.

    Returns:
        metrics: {metric: value} of the model.
        chance: {metric: value} of a model with constant outputs.
        constant: [{metric: value}] of models that always predict one class, in the order of the classes.
        collapsed: whether all predictions are the same.
        items: [{"id", "value"}]. The value is the weight of the item's true class in the prediction: 1 or 0, or 1/k in
            a tie of k classes. In a regression it is the negative squared error.
    """
    labels = [example.label for example in examples]
    if not np.isfinite(logits_NC).all():
        raise ValueError("the model's outputs are not numbers (NaN or infinite)")
    if logits_NC.shape[1] == 1:
        outputs = logits_NC[:, 0]
        values = -((outputs - np.array(labels)) ** 2)
        scores, classes = metrics.regression_metrics(outputs, np.array(labels)), 0
    else:
        outputs, classes = logits_NC, logits_NC.shape[1]
        classes_N = np.array(labels, int)
        values = metrics.predicted_shares(outputs)[np.arange(len(labels)), classes_N]
        scores = metrics.classification_metrics(outputs, classes_N)
    return {
        "metrics": scores,
        "chance": metrics.chance_metrics(labels, classes),
        "constant": metrics.metrics_per_constant_class(labels, classes),
        "collapsed": metrics.is_collapsed(outputs),
        "items": [{"id": example.id, "value": float(value)} for example, value in zip(examples, values, strict=True)],
    }


def model_conditions(setting: Setting, model_sha256: str) -> dict[str, Any]:
    """The part of `result_conditions` that is the same for all tasks: {"model_sha256", "setting", "inputs_version"}.
    The last is the version of the encoding of inputs. `setting`: the hyperparameters; `model_sha256`: the hash of the
    pretrained model."""
    return {"model_sha256": model_sha256, "setting": asdict(setting), "inputs_version": rundir.GLUE_INPUTS_VERSION}


def result_conditions(name: str, folders: Sequence[Path], setting: Setting, model_sha256: str) -> dict[str, Any]:
    """Everything that the result of fine-tuning on a task depends on besides the seed. A stored result is reused only
    while these are the same. Returns {"task", "data_sha256": {split: sha256}} and the entries of `model_conditions`.

    Args:
        name: the task.
        folders: folders with data of GLUE.
        setting: the hyperparameters.
        model_sha256: the hash of the pretrained model.

    Raises:
        ValueError: the data of a split is missing.
    """
    data = {}
    for split in ("train", *TASKS[name].splits):
        path = find_split(name, split, folders)
        if path is None:
            load_split(name, split, folders)  # raises, and says where it was sought
        assert path is not None
        data[split] = safe_files.sha256(path)
    return {"task": name, **model_conditions(setting, model_sha256), "data_sha256": data}


def finetune(
    name: str,
    folders: Sequence[Path],
    make_backbone: Callable[[int], Any],
    encode: Callable[[str, str], list[int]],
    setting: Setting,
    seed: int,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> dict[str, Any]:
    """Fine-tune a model on a task and score it. Returns {"sets": {evaluation set: result of `score_predictions`},
    "train_items": number of training items}.

    Args:
        name: the task.
        folders: folders with data of GLUE.
        make_backbone: a function of the seed that returns a new backbone (classifier.py) with the pretrained weights.
        encode: a function (text_a, text_b) -> token ids.
        setting: the hyperparameters.
        seed: the seed of the classifier's initial weights, of the order of items and of dropout.
        device: the torch device, such as "cuda".
        progress: a function that is called after every step with the number of finished steps and of all steps.
    """
    task = TASKS[name]
    examples = load_split(name, "train", folders)
    evaluated = {split: load_split(name, split, folders) for split in task.splits}
    model = Classifier(make_backbone(seed), max(1, len(task.labels)), setting.pooling, setting.dropout, seed).to(device)
    rows = [encode(example.text_a, example.text_b) for example in examples]
    train(model, rows, [example.label for example in examples], setting, seed, progress)
    sets = {}
    for split, items in evaluated.items():
        sets[split] = score_predictions(
            predict_logits(model, [encode(item.text_a, item.text_b) for item in items]), items
        )
    return {"sets": sets, "train_items": len(examples)}
