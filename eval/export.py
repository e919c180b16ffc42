"""python -m eval.export RUN_DIR --to DIR: writes a finished run as a Hugging Face checkpoint, and verifies it.

Without --to the checkpoint is written to the folder `hub` of the run directory. An export of the run's present weights
that is there already is kept; an export of other weights of the run is replaced.
"""

import glob
import os
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablations import answers, rundir, safe_files
from data.disk import wait_until_on_disk
from data.tokenizer import PARITY_TEXTS, reason_not_exportable
from eval import location
from eval.export_tokenizer import compare_tokenizers, convert_tokenizer

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # nothing of this is on the hub

SEQUENCES_COMPARED = 2  # sequences of held-out text whose logits are compared


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(prog="python -m eval.export", description=__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_DIR", help="of a finished run")
    add("--store", type=Path, metavar="FOLDER", help="where the run's prepared data is (default: data in its OUT)")
    add("--to", type=Path, metavar="DIR", help="a folder that does not exist yet (default: hub in RUN_DIR)")
    answers.add_format_option(parser)
    args = parser.parse_args(argv)
    to = args.to or args.run / rundir.HUB
    is_new = bool(args.to) or not rundir.is_exported(args.run)
    try:
        verified = export_run(args.run, args.to, args.store) if is_new else "it is there already"
    except Exception as error:
        # safetensors and tokenizers, written in Rust, raise types of their own where a disk is full
        if not isinstance(error, ValueError | OSError) and "(os error " not in str(error):
            raise
        answers.print_error(str(error), args.format == "json")
        return 2
    if args.format == "json":
        print(
            answers.json_answer("export", {"written": str(to), "new": is_new, "verified": verified if is_new else None})
        )
    else:
        print(f"{to}: {verified}")
    return 0


def export_run(directory: Path, to: Path | None, store: Path | None = None) -> str:
    """Write a run as a Hugging Face checkpoint, and verify the checkpoint. Returns a sentence on what was verified.

    Args:
        directory: the run directory.
        to: the folder to create; None: the folder `hub` in the run directory, where an earlier export of this run is
            replaced.
        store: the folder of prepared data; None: the folder `data` two levels above the run directory.

    Raises:
        ValueError: the run is not finished or is damaged, the folder `to` exists already, Hugging Face has no such
            architecture, or the checkpoint's outputs differ from the run's. No new checkpoint is left then, and an
            earlier one stays.
    """
    run = location.read_run_json(directory)
    if rundir.read_done(directory) is None:
        raise ValueError(f"{directory} has no {rundir.DONE}: only a finished run can be exported")
    earlier = to is None and _is_export_of_run(safe_files.path_inside(directory, rundir.HUB), run)
    to = to or directory / rundir.HUB
    if to.exists() and not earlier:
        raise ValueError(f"{to} exists; name a folder that does not")
    from model import hub

    cfg = location.model_config(directory, run)
    form = hub.matching_format(cfg)

    import torch
    import transformers

    from eval.tasks.probes import sorted_texts
    from eval.weights import Weights

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    store = location.data_store(directory, store)
    tokenizer = location.load_tokenizer(directory, run, store)
    if reason := reason_not_exportable(tokenizer):
        raise ValueError(reason)
    safe_files.path_inside(directory, rundir.WEIGHTS)
    weights = Weights(directory / rundir.WEIGHTS)
    weights.check_size(cfg)
    if note := weights.verify_hash():
        print(f"note: {note}", file=sys.stderr)
    state = weights.state_dict(run, None)
    texts = sorted_texts(location.validation_files(directory, run, store))
    encoded = tokenizer.encode_batch(texts)
    rows_BT = torch.tensor(held_out_sequences(encoded, tokenizer.eod, cfg.seq))
    safe_files.remove_abandoned_drafts(to.parent, f".{glob.escape(to.name)}.*")
    draft = to.with_name(f".{to.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        origin = {name: run.get(name) for name in ("cell", "fingerprint", "commit")}
        origin["weights"] = weights.sha256
        hub.save_checkpoint(cfg, state, draft, tokenizer.eod, origin, getattr(tokenizer, "pad", None))
        _save_tokenizer(tokenizer, draft, cfg.seq if cfg.pos == "learned" else None, form.causal, texts, encoded)
        difference = hub.verify_checkpoint(draft, cfg, state, rows_BT)
        wait_until_on_disk(draft)
        if earlier:
            shutil.rmtree(to, ignore_errors=True)
        try:
            os.rename(draft, to)
        except OSError:
            # the same command, given twice, may have been first
            if to != directory / rundir.HUB or not rundir.is_exported(directory):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    size = sum(map(len, texts))
    generates = ", it generates as ours does" if form.causal else ""
    return (
        f"{form.name}; its logits differ by {difference:.1e} of the largest (allowed {hub.TOLERANCE:.0e}){generates}, "
        f"and its tokenizer gives the same ids on {len(texts)} held-out documents ({size:,} characters)"
    )


def _save_tokenizer(
    tokenizer: Any, folder: Path, longest: int | None, causal: bool, texts: list[str], encoded: list[list[int]]
) -> None:
    """Write a tokenizer into the folder of a checkpoint in Hugging Face's format, read it back, and compare it with the
    original.

    Args:
        tokenizer: the original, of data/tokenizer.py.
        folder: the folder of the checkpoint.
        longest: the longest input of the model, in tokens; None: unlimited.
        causal: whether the model is a decoder.
        texts: held-out documents on which the two tokenizers are compared.
        encoded: the token ids of each of these documents by the original tokenizer.

    Raises:
        ValueError: the tokenizer that is read back gives other ids or other text.
    """
    import transformers

    convert_tokenizer(tokenizer, longest, causal).save_pretrained(folder)
    saved = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    compare_tokenizers(tokenizer, saved, [*texts, *PARITY_TEXTS], [*encoded, *map(tokenizer.encode, PARITY_TEXTS)])


def _is_export_of_run(folder: Path, run: dict[str, Any]) -> bool:
    """Whether a folder has an exported checkpoint of this run, even of weights that have been replaced since. `run`:
    the content of run.json."""
    origin = (safe_files.read_json(folder / "config.json") or {}).get("trained_by")
    return isinstance(origin, dict) and origin.get("fingerprint") == run.get("fingerprint")


def held_out_sequences(encoded: Iterable[list[int]], eod: int, seq: int) -> list[list[int]]:
    """The first SEQUENCES_COMPARED sequences of held-out text as token ids, `seq` tokens each. Where there is less
    text, one sequence of at most `seq` tokens.

    Args:
        encoded: the token ids of each held-out document.
        eod: the id of the end-of-document token, which is put before each document.
        seq: the training length in tokens.

    Raises:
        ValueError: there is no held-out text.
    """
    stream: list[int] = []
    for ids in encoded:
        stream += [eod, *ids]
        if len(stream) >= SEQUENCES_COMPARED * seq:
            return [stream[i * seq : (i + 1) * seq] for i in range(SEQUENCES_COMPARED)]
    if not stream:
        raise ValueError("there is no held-out text to verify the export with")
    return [stream[:seq]]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no draft is left
    sys.exit(main())
