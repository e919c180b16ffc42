"""The evaluation tasks made from the held-out text of a run's corpora, and the loss of masked language models on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from eval import location
from eval.entries import Tasks
from eval.tasks import probes


class HeldOutText(NamedTuple):
    """The held-out text of the corpora on which a run is evaluated (setting eval.corpora), and the tasks made from it.

    tasks: {"corpus/task": (the task's entry in tasks.yaml, its items)}.
    domains: {"corpus/domain": (the entry of bits_per_byte in tasks.yaml, items)}, for the loss of each domain.
    documents: {corpus: its held-out documents}.
    """

    tasks: Tasks
    domains: Tasks
    documents: dict[str, list[str]]

    def with_masked_loss(self, mask_rate: float) -> "HeldOutText":
        """The same text for a masked language model: only the tasks of held-out loss, with the mask rate (the fraction
        of masked tokens) appended to their names. Losses at different rates cannot be compared."""

        def losses(tasks: Tasks) -> Tasks:
            rate = f"masked_{mask_rate:.0%}"
            return {f"{name}_{rate}": task for name, task in tasks.items() if task[0]["metric"] == "bits_per_byte"}

        return self._replace(tasks=losses(self.tasks), domains=losses(self.domains))

    @property
    def omitted(self) -> list[str]:
        """The names of the tasks without items, because the text gives too few."""
        return [name for name, (_, items) in self.tasks.items() if not items]


def held_out_text(run: dict[str, Any], store: Path) -> HeldOutText:
    """The held-out text on which a run is evaluated. `run`: the content of run.json; `store`: the folder of prepared
    data."""
    spec = probes.load_specification()["tasks"]
    text = HeldOutText({}, {}, {})
    for corpus in run["config"]["eval"]["corpora"]:
        files = location.held_out_files(corpus, run, store)
        clusters = probes.clusters_of(files)
        text.documents[corpus] = list(clusters)
        for name, items in probes.make_items(list(clusters), run["config"]["model"]["seq"], clusters).items():
            text.tasks[f"{corpus}/{name}"] = (spec[name], items)
        for name, items in probes.held_out_items_by_domain(files, spec["bits_per_byte"]["domain_bytes"]).items():
            text.domains[f"{corpus}/{name}"] = (spec["bits_per_byte"], items)
    return text


def masked_outcomes(
    model: Any, tokenizer: Any, tasks: Tasks, progress: Callable[[int, int], None]
) -> dict[str, dict[str, Any]]:
    """The held-out loss of a masked language model on each task: {task: result in the form of
    `harness.run_held_out_tasks`}.

    Args:
        model: a GPT with objective mlm.
        tokenizer: the tokenizer of the run.
        tasks: {task: (its entry in tasks.yaml, its items)}.
        progress: a function that is called with the number of finished tokens and of all tokens of a task.
    """
    from eval.tasks.harness import sha256
    from eval.tasks.masked import masked_loss

    outcomes = {}
    for name, (_, items) in tasks.items():
        texts = [item["target"] for item in items]
        outcome = masked_loss(model, texts, tokenizer, tokenizer.mask, tokenizer.specials, progress)
        samples = [
            {"id": item["id"], "cluster": item["cluster"], **sample}
            for item, sample in zip(items, outcome.pop("samples"), strict=True)
        ]
        digest = sha256([item["id"] for item in items])
        outcomes[name] = {"value": outcome.pop("bits_per_byte"), **outcome, "items_sha256": digest, "samples": samples}
    return outcomes
