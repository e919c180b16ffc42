"""python -m eval.exportable POS=alibi ...: prints, before training, which arms of a study cannot be exported as Hugging
Face checkpoints, and why.

Exit codes: 0, all arms can be exported; 2, an arm cannot, or the words of the command are not valid.
"""

import sys

from ablations.config import Run
from ablations.rundir import Exit
from ablations.safe_files import printable
from ablations.study import from_args
from ablations.words import change_to_checkout
from data.tokenizer import reason_settings_not_exportable


def reason_not_exportable(run: Run) -> str:
    """Why a run cannot be exported as a Hugging Face checkpoint, as text; "" where it can. Transformers may lack the
    architecture or the tokenizer."""
    from model import hub

    try:
        hub.matching_format(run.model)
        return reason_settings_not_exportable(run.data.tokenizer_kind, run.data.tokenizer)
    except ValueError as error:
        return str(error)


def main(words: list[str]) -> int:
    try:
        study = from_args(words)
    except ValueError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return Exit.INVALID
    reasons = {arm: reason_not_exportable(study.cell(arm, study.seeds[0]).run) for arm in study.arms}
    for arm, reason in reasons.items():
        if reason:
            print(f"error: {printable(f'{arm}: {reason}')}", file=sys.stderr)
    return Exit.INVALID if any(reasons.values()) else Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main(change_to_checkout(sys.argv[1:])))
