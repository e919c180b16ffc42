"""`make plan` without ON= and BUDGET=: the runs of a study on this machine and their cost, as text."""

from typing import Any

from ablations import answers, rundir
from ablations.config import fit_micro_batch
from ablations.machine import has_gpu
from ablations.study import Study, arms_left_out
from ablations.values import short_number


def plan_on_this_machine(study: Study) -> list[str]:
    """The plan of a study on this machine, as lines of text: its runs, their compute and memory, their checkpoints and
    data, and the differences that the study can detect."""
    from ablations.plan.epochs import describe_epochs
    from ablations.plan.reliability import describe_saves
    from ablations.plan.schedules import schedule_drawings
    from ablations.plan.study_cost import detectable_text

    plan = answers.plan_answer(study)
    out = [study.title, f"  question  {study.question}", f"  expected  {study.expect}"]
    out += [f"  {study.trial_note}"] if study.trial_note else []
    if already := arms_left_out(study):
        out.append(f"  left out, the baseline has it already: {', '.join(already)}")
    out.append("")
    if study.design:
        out.append(study.design)
        if study.factorial and (aliasing := study.factorial.aliasing):
            out.append("What is told together, and how much of the other is in it:")
            out += [f"  {line}" for line in aliasing]
        out.append("")
    out += [*_run_table(study, plan["cells"]), "", _length_and_memory_sentence(study, plan["cells"])]
    if study.criteria.sequential:
        flops = "" if study.base.ends_by_clock else f", {plan['at_most']['flops']:.2e} FLOPs in all"
        out.append(
            f"MORE=auto: seeds are added until every arm is decided, at most {study.criteria.seeds} of each arm "
            f"(MAX_SEEDS): {study.max_runs} runs{flops}"
        )
    layout = study.base.layout
    checkpoints = [folder for cell in study.cells for folder in rundir.checkpoints(cell.dir / rundir.CHECKPOINTS)]
    if study.compiled_why:
        out.append(study.compiled_why)
    every = layout.save_every
    out.append(f"checkpoints: every {every} steps" if every else describe_saves(checkpoints, layout.mtbf, 1))
    if milestones := study.base.milestones:
        out.append(f"weights are kept, and judged, at {', '.join(map(short_number, milestones.values()))} tokens too")
    return [*out, *schedule_drawings(study), *describe_epochs(study), detectable_text(study)]


def _run_table(study: Study, cells: list[dict[str, Any]]) -> list[str]:
    """The table of a study's runs as lines of text. `cells`: the entry "cells" of the result of
    `answers.plan_answer`."""
    deltas = {cell.arm: cell.delta for cell in study.cells}
    names = {arm: arm if delta or arm == "baseline" else f"{arm} (baseline)" for arm, delta in deltas.items()}
    width = max(map(len, names.values()))
    out = [f"{'cell':>4}  {'arm':{width}} {'seed':>4}  {'parameters':>12}  {'tokens':>8}  {'FLOPs':>8}  directory"]
    for cell in cells:
        tokens = flops = "by clock"  # unknown until training ends
        if cell["tokens"] is not None:
            tokens, flops = short_number(cell["tokens"]), f"{cell['flops']:.1e}"
        out.append(
            f"{cell['index']:4}  {names[cell['arm']]:{width}} {cell['seed']:4}  "
            f"{cell['parameters']:12,}  {tokens:>8}  {flops:>8}  {cell['directory']}  [{cell['state']}]"
        )
    return out


def _length_and_memory_sentence(study: Study, cells: list[dict[str, Any]]) -> str:
    """A sentence on the number of runs, the steps of each, the FLOPs of all, and the largest memory of a rank. `cells`:
    the entry "cells" of the result of `answers.plan_answer`."""
    from model.memory import estimate_memory

    layout = study.base.layout
    replicas = max(layout.processes // layout.tp, 1)
    base = fit_micro_batch(study.base, replicas)
    micro_batch = base.layout.micro_batch
    accumulate = base.train.batch // (micro_batch * replicas)
    memory = max(
        estimate_memory(
            cell.run.model,
            micro_batch,
            cell.run.train.precision,
            layout.zero,
            replicas,
            accumulate,
            has_gpu(),
            layout.tp,
        )["total"]
        for cell in study.cells
    )
    length = f"{base.train.budget} of wall clock each, of as many steps and tokens as it allows"
    if not base.ends_by_clock:
        length = f"{base.steps} steps, {sum(cell['flops'] for cell in cells):.2e} FLOPs in all"
    return (
        f"{len(study.cells)} runs of {length}, {base.train.precision}, "
        f"size {base.size}; at most {memory / 1e9:.3g} GB of tensors on each rank, by estimate"
    )
