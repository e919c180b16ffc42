"""Fine-tuning against Hugging Face's Trainer on real GLUE data: the same exported checkpoint, task, order and head.

Needs ../shared/data. `python -m tests.test_glue_trainer` measures it on whole training sets and prints a table.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.tokenizer import load_tokenizer
from data.tokenizer import train as train_tokenizer
from eval import export_tokenizer
from eval.finetune import metrics, tasks, train
from eval.finetune.classifier import Classifier, GPTBackbone, input_encoder
from model import hub
from model.config import ModelConfig
from model.gpt import GPT
from model.objective import SpecialTokens

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDERS = [SHARED / "glue", SHARED / "zero_shot"]  # RTE and MRPC have no evaluation set in the first
NAMES = ("rte", "mrpc", "cola")
LONGEST = 64  # tokens
CFG = ModelConfig(
    layers=2,
    hidden=64,
    heads=4,
    seq=LONGEST,
    vocab=2048,
    vocab_multiple=128,
    objective="mlm",
    mask_rate=0.25,
    pos="learned",
    act="gelu",
    norm="layernorm",
    block="post-ln",
    embnorm=False,
    sumnorm=True,
    head_transform="bert",
    output_bias=True,
    qk_scaling=False,
    qkv_bias=True,
    linear_bias=True,
    tied=True,
    dropout=0.0,
    attn_dropout=0.0,
    rotary_base=10_000.0,
    init_std=0.02,
    norm_eps=1e-12,
)
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data with GLUE")


class Checkpoint:
    """A small encoder that saw a little masked text, with its tokenizer; and the same as `export` writes it."""

    def __init__(self, folder: Path, steps: int = 30):
        texts = [
            text for name in NAMES for item in tasks.load_split(name, "train", FOLDERS) for text in item[1:3] if text
        ]
        file = folder / "ours/tokenizer.json"
        file.parent.mkdir(parents=True)
        file.write_bytes(train_tokenizer(texts, sum(map(len, texts)), CFG.vocab, "wordpiece"))
        self.tokenizer: Any = load_tokenizer(file)
        model = GPT(CFG, seed=1)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        stream = [token for ids in self.tokenizer.encode_batch(texts[::7]) for token in (*ids, self.tokenizer.eod)]
        rows = torch.tensor(stream[: len(stream) // (LONGEST + 1) * (LONGEST + 1)]).view(-1, LONGEST + 1)
        special = SpecialTokens(self.tokenizer.mask, self.tokenizer.specials)
        for step in range(steps):
            at = [(16 * step + i) % len(rows) for i in range(16)]
            loss = model.loss(model.objective.batch(rows[at], 1, range(16 * step, 16 * step + 16), special))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.state = {name: x.detach().clone() for name, x in model.state_dict().items()}
        self.folder = folder / "theirs"
        self.folder.mkdir()
        hub.save_checkpoint(CFG, self.state, self.folder, self.tokenizer.eod, pad=self.tokenizer.pad)
        export_tokenizer.convert_tokenizer(self.tokenizer, LONGEST, causal=False).save_pretrained(self.folder)

    def ours(self, seed: int, dropout: float) -> Classifier:
        model = GPT(replace(CFG, dropout=dropout, attn_dropout=dropout))
        model.load_state_dict(self.state)
        return Classifier(GPTBackbone(model), 2, "first", dropout, seed)

    def theirs(self, head: Classifier, dropout: float) -> Any:
        """BertForSequenceClassification from the exported folder, its head that of ours before training."""
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(
            self.folder, num_labels=2, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
        )
        # BERT's kinds of tokens, which ours has not: zeros in the export, and not to be trained in a comparison
        model.bert.embeddings.token_type_embeddings.weight.requires_grad_(False)
        with torch.no_grad():
            for their, our in ((model.bert.pooler.dense, head.dense), (model.classifier, head.out)):
                their.weight.copy_(our.weight)
                their.bias.copy_(our.bias)
        return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"))


def trainer(
    model: Any, rows: list[dict], lengths: list[int], setting: train.Setting, seed: int, to: Path
) -> tuple[Any, list[float]]:
    """Hugging Face's Trainer with our order of the batches, and the losses of its steps, which training fills in."""
    import transformers

    class Order:
        """The batches of each epoch."""

        epoch = -1

        def __len__(self) -> int:
            return len(train.epoch_batches(lengths, setting.batch, seed, 0))

        def __iter__(self) -> Iterator[list[int]]:
            self.epoch += 1
            yield from train.epoch_batches(lengths, setting.batch, seed, self.epoch)

    collate = transformers.DataCollatorWithPadding(transformers.AutoTokenizer.from_pretrained(model.name_or_path))
    losses: list[float] = []

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(rows, batch_sampler=Order(), collate_fn=collate)  # type: ignore[arg-type]

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            if self.model.training:
                losses.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

    steps = setting.epochs * len(Order())
    arguments = transformers.TrainingArguments(
        output_dir=str(to),
        num_train_epochs=setting.epochs,
        per_device_train_batch_size=setting.batch,
        per_device_eval_batch_size=64,
        learning_rate=setting.lr,
        lr_scheduler_type="cosine",
        warmup_steps=int(setting.warmup * steps),
        adam_beta2=setting.beta2,
        adam_epsilon=setting.eps,
        weight_decay=0.0,
        max_grad_norm=0.0,
        seed=seed,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate), losses


def both(
    checkpoint: Checkpoint, name: str, setting: train.Setting, seed: int, to: Path, items: int | None
) -> dict[str, Any]:
    """One task and seed, fine-tuned by both: {"losses": (ours, theirs), "scores": (ours, theirs), "logits": ...}."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    from transformers import AutoTokenizer

    examples, judged = tasks.load_split(name, "train", FOLDERS)[:items], tasks.load_split(name, "dev", FOLDERS)
    encode, tokenizer = input_encoder(checkpoint.tokenizer, LONGEST), AutoTokenizer.from_pretrained(checkpoint.folder)
    rows, dev = ([encode(item.text_a, item.text_b) for item in part] for part in (examples, judged))
    labels = [item.label for item in examples]

    ours = checkpoint.ours(seed, setting.dropout)
    theirs = checkpoint.theirs(ours, setting.dropout)
    losses = train.train(ours, rows, labels, setting, seed)
    logits = train.predict_logits(ours, dev)

    def their_rows(part: list[tasks.Example]) -> list[dict]:
        """As run_glue encodes them, by the exported tokenizer."""
        return [
            {
                **tokenizer(item.text_a, item.text_b or None, truncation=True, max_length=LONGEST),
                "labels": int(item.label),
            }
            for item in part
        ]

    encoded = their_rows(examples)
    assert [row["input_ids"] for row in encoded] == rows
    made, their_losses = trainer(theirs, encoded, list(map(len, rows)), setting, seed, to)
    made.train()
    their_logits = made.predict(their_rows(judged)).predictions
    score = {"accuracy": accuracy_score, "f1": f1_score, "mcc": matthews_corrcoef}[tasks.TASKS[name].cramming_metric]
    dev_labels = [int(item.label) for item in judged]
    scores = metrics.classification_metrics(logits, np.array(dev_labels))[tasks.TASKS[name].cramming_metric]
    return {
        "losses": (losses, their_losses),
        "logits": (logits, their_logits),
        "scores": (scores, float(score(dev_labels, their_logits.argmax(1)))),
    }


@pytest.mark.parametrize("name", NAMES)
def test_without_dropout_each_step_and_the_score_are_those_of_the_trainer(
    name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    setting = train.Setting(epochs=2, batch=16, lr=1e-3, dropout=0.0, pooling="first", longest=LONGEST)
    made = both(checkpoint, name, setting, 3, tmp_path, 240)
    ours, theirs = made["losses"]
    assert len(ours) == len(theirs) == 30 and max(ours) - min(ours) > 0.02
    np.testing.assert_allclose(ours, theirs, atol=5e-5)
    np.testing.assert_allclose(*made["logits"], atol=2e-3)
    assert made["scores"][0] == pytest.approx(made["scores"][1], abs=0.01)  # a near tie may fall either way


@pytest.mark.parametrize("name", NAMES)
def test_with_dropout_the_scores_agree_within_the_spread_of_seeds(
    name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    setting = train.Setting(epochs=1, batch=16, lr=1e-3, dropout=0.1, pooling="first", longest=LONGEST)
    scores = np.array([both(checkpoint, name, setting, seed, tmp_path, 160)["scores"] for seed in (1, 2, 3)])
    spread = np.ptp(scores, 0).max() + 0.02  # of three seeds that may come out alike
    assert abs(scores[:, 0].mean() - scores[:, 1].mean()) <= spread


def main() -> None:
    """The default setting, three seeds; arguments: a learning rate, and how many training items (default: all)."""
    import tempfile

    rate = float(sys.argv[1]) if len(sys.argv) > 1 else train.Setting.lr
    items = int(sys.argv[2]) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Checkpoint(Path(place), steps=300)
        for dropout in (0.0, 0.1):
            setting = train.Setting(lr=rate, dropout=dropout, pooling="first", longest=LONGEST)
            for name in NAMES:
                runs = [both(checkpoint, name, setting, seed, Path(place) / "out", items) for seed in (1, 2, 3)]
                scores = 100 * np.array([made["scores"] for made in runs])
                apart = max(np.abs(np.subtract(*made["losses"])).max() for made in runs)
                print(
                    f"dropout {dropout}, {name}: {tasks.TASKS[name].cramming_metric} ours {scores[:, 0].round(1)}, "
                    f"Trainer {scores[:, 1].round(1)}, {len(runs[0]['losses'][0])} steps, losses differ by {apart:.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
