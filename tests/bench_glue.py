"""Compares our speed of fine-tuning on GLUE with that of Hugging Face's Trainer: `python -m tests.bench_glue` (needs
../shared/data).

Both train the same exported encoder (4 layers of width 256, random weights) with the same head: in fp32, on inputs of
at most 128 tokens, for one epoch of --items of each task, on one thread. Our trainer sorts inputs by length. The
Trainer pads all inputs to 128 tokens, as run_glue does by default, or those of a batch to the longest of them. They
take turns, and their CPU time is measured, tokenizing and prediction included.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import torch
import transformers

from eval.finetune import tasks, train
from eval.finetune.classifier import input_encoder
from tests import test_glue_trainer as trainer

PADDINGS = {"run_glue's, to 128": "max_length", "each batch to its longest": False}
LONGEST = 128  # tokens, run_glue's default


def ours(checkpoint: Any, examples: list, judged: list, setting: train.Setting) -> None:
    encode = input_encoder(checkpoint.tokenizer, LONGEST)
    rows, dev = ([encode(item.text_a, item.text_b) for item in part] for part in (examples, judged))
    model = checkpoint.ours(1, setting.dropout)
    train.train(model, rows, [item.label for item in examples], setting, 1)
    train.predict_logits(model, dev)


def theirs(checkpoint: Any, examples: list, judged: list, setting: train.Setting, padding: Any, to: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder)

    def encode(part: list) -> list[dict]:
        options: dict[str, Any] = {"truncation": True, "max_length": LONGEST, "padding": padding}
        return [tokenizer(item.text_a, item.text_b or None, **options) | {"labels": int(item.label)} for item in part]

    rows, model = encode(examples), checkpoint.theirs(checkpoint.ours(1, setting.dropout), setting.dropout)
    made = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(to),
            num_train_epochs=setting.epochs,
            per_device_train_batch_size=setting.batch,
            per_device_eval_batch_size=64,
            learning_rate=setting.lr,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    made.train()
    made.predict(encode(judged))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--items", type=int, default=320, help="training items of each task, and evaluated ones at most"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(trainer.NAMES), choices=trainer.NAMES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    trainer.LONGEST, trainer.CFG = LONGEST, replace(trainer.CFG, layers=4, hidden=256, heads=4, seq=LONGEST)
    print("| task | Trainer's padding | CPU s: ours | Trainer | ours is faster by |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        checkpoint = trainer.Checkpoint(Path(place), steps=0)
        setting = train.Setting(epochs=1, pooling="first")
        for name in args.tasks:
            examples = tasks.load_split(name, "train", trainer.FOLDERS)[: args.items]
            judged = tasks.load_split(name, "dev", trainer.FOLDERS)[: args.items]
            seconds: dict[str, list[float]] = {"ours": [], **{words: [] for words in PADDINGS}}
            for _ in range(args.rounds):
                for words, times in seconds.items():
                    began = time.process_time()
                    if words == "ours":
                        ours(checkpoint, examples, judged, setting)
                    else:
                        theirs(checkpoint, examples, judged, setting, PADDINGS[words], Path(place) / "out")
                    times.append(time.process_time() - began)
            for words in PADDINGS:
                ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds[words], strict=True))
                mine, their = statistics.median(seconds["ours"]), statistics.median(seconds[words])
                print(f"| {name} | {words} | {mine:.1f} | {their:.1f} | {ratio:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
