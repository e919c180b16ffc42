"""The cost of a study on given hardware (layouts, hours, energy, disk), and reasons not to start it."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablations import answers
from ablations.budget import ClockBudget
from ablations.cells import Cell
from ablations.drawing import bar_chart
from ablations.factorial import effect_order
from ablations.machine import sees_gpu
from ablations.parts import PARTS
from ablations.plan import power, site_speed
from ablations.plan.hardware import GPU
from ablations.plan.layouts import FittingLayout, best_layout, layouts_that_fit, layouts_to_show
from ablations.plan.reliability import ASSUMED, NODE_MTBF, feasible_save_interval
from ablations.plan.resources import HOUR, amount_text
from ablations.plan.schedules import schedule_drawings
from ablations.plan.throughput import PredictedStep
from ablations.site import find_site_file
from ablations.study import Study
from ablations.values import short_number
from model.count import count_parameters, flops_per_token

CHECKPOINT_BYTES = 12  # per parameter: fp32 weights and two moments (docs/reliability.md: 148 MB for 12.3M)
WEIGHT_BYTES = 4  # per parameter, of the weights that are kept of a finished run
# The number of tokens that an evaluation reads on the 27 tasks (derived from the sizes of their data sets), and on the
# held-out text and its probes (assumed); the share of the peak FLOP/s that it reaches.
SUITE_TOKENS, PROBE_TOKENS, EVAL_UTILISATION = 25e6, 3e6, 0.3
MAX_PARAMETER_DIFFERENCE = 0.01  # of the baseline's parameters, for arms whose factor is not in OWN_PARAMETERS
OWN_PARAMETERS = {  # {setting that may change the number of parameters: the reason}
    "model.pos": "a learned table is the variant itself",
    "model.embnorm": "the norm is the variant itself",
    "model.norm": "a bias of the norm is the variant itself",
    "model.qkv_bias": "the biases are the variant itself",
    "model.linear_bias": "the biases are the variant itself",
    "model.layers": "the size is the question",
    "model.hidden": "the size is the question",
    "model.vocab": "the size is the question",
    "model.tied": "the second matrix is the variant itself",
}
UNMATCHED_VARIANTS = ("swiglu-unmatched",)  # variants whose name says that they are larger
MAX_DECAY_RATIO = 2.0  # of decay horizon to budget, or the reverse; more is taken for an error; untuned


@dataclass(frozen=True)
class RunCost:
    """The predicted cost of one run."""

    arm: str
    seed: int
    parameters: int
    tokens: int
    steps: int
    flops: float  # of the model
    peak_flops: float  # the most that the GPUs could do in `hours`, by their data sheets
    hours: float  # of training, by the wall clock
    low: float  # the 80% interval of `hours`
    high: float
    tokens_per_second: float
    gib: float  # the memory of a GPU
    gpu_hours: float  # of training
    kwh: float  # at most, of the GPUs alone
    checkpoints_gb: float
    save_every_minutes: float
    evaluation_gpu_hours: float


@dataclass(frozen=True)
class StudyCost:
    """The predicted cost of a study on given hardware, the parallel layouts in which its runs fit, and reasons not to
    start it."""

    study: Study
    gpu: GPU
    gpus: int  # of each run
    candidates: list[FittingLayout]  # the fastest first
    runs: list[RunCost]  # empty where no layout fits
    refused: list[str]  # reasons against starting the study
    notes: list[str]

    @property
    def best(self) -> FittingLayout | None:
        return best_layout(self.candidates)

    @property
    def gpu_hours(self) -> float:
        """The GPU-hours of training and evaluation of all runs."""
        return sum(run.gpu_hours + run.evaluation_gpu_hours for run in self.runs)

    @property
    def most_gpu_hours(self) -> float:
        """The GPU-hours of the study with all seeds that MORE=auto may add."""
        return self.gpu_hours * self.study.max_runs / len(self.study.cells)

    @property
    def at_most(self) -> dict[str, float] | None:
        """The cost of the study with all seeds that MORE=auto may add: {"seeds": of each arm, "runs", "gpu_hours",
        "kwh", "disk_gb"}. None where the number of seeds is fixed."""
        study = self.study
        if not study.criteria.sequential:
            return None
        share = study.max_runs / len(study.cells)
        return {
            "seeds": study.criteria.seeds,
            "runs": study.max_runs,
            "gpu_hours": self.most_gpu_hours,
            "kwh": share * sum(run.kwh for run in self.runs),
            "disk_gb": share * sum(run.checkpoints_gb for run in self.runs),
        }

    def as_json(self, budget_gpu_hours: float | None = None) -> dict[str, Any]:
        """The cost as an object for FORMAT=json. `budget_gpu_hours`: the user's budget, or None."""
        study = self.study
        return {
            **answers.study_entries(study),
            "size": study.base.size,
            "hardware": self.gpu.name,
            "gpus_per_run": self.gpus,
            "layouts": [
                {
                    "settings": candidate.settings_text,
                    "recompute": candidate.layout.recompute,
                    "seconds_per_step": candidate.steps[0].seconds,
                    "low": candidate.steps[0].low,
                    "high": candidate.steps[0].high,
                    "gib": candidate.gib,
                    "basis": candidate.steps[0].basis,
                }
                for candidate in layouts_to_show(self.candidates)
            ],
            "runs": [asdict(run) for run in self.runs],
            "gpu_hours": self.gpu_hours,
            "budget_gpu_hours": budget_gpu_hours,
            "share_of_budget": self.gpu_hours / budget_gpu_hours if budget_gpu_hours else None,
            "kwh": sum(run.kwh for run in self.runs),
            "disk_gb": sum(run.checkpoints_gb for run in self.runs),
            "at_most": self.at_most,
            "detects": detectable_text(study),
            "refused": self.refused,
            "notes": self.notes,
        }


def study_cost(study: Study, gpu: GPU, gpus: int, speeds: Path = site_speed.MEASUREMENTS) -> StudyCost:
    """The cost of a study on given hardware, and reasons not to start it.

    Args:
        study: the study.
        gpu: the kind of GPU.
        gpus: the number of GPUs of each run.
        speeds: the file of speeds measured at this site, by which predictions are corrected.
    """
    site = site_speed.read_site_speed(gpu, speeds)
    arm_runs = [study.cell(arm, study.seeds[0]).run for arm in study.arms]
    baseline = arm_runs[0]
    candidates, reasons = layouts_that_fit(arm_runs, gpu, gpus, site)
    best = best_layout(candidates)
    refused, notes = _check_comparability(study)
    if baseline.train.precision == "bf16" and not gpu.bf16:
        refused.append(f"{gpu.name} has no bf16: SET='train.precision=fp16'")
    if not candidates:
        refused += reasons
    elif best and best.layout.recompute:
        refused.append("only layouts with recomputation fit, which launch/engine.py has not: more GPUs are needed")
    widest = max((candidate.layout.dp for candidate in candidates), default=gpus)
    if widest < gpus and candidates:
        smallest = min(baseline.batch_sizes.sizes)
        notes.append(f"{widest} replicas at most of {gpus} GPUs: the smallest batch has {smallest} sequences")
    runs: list[RunCost] = []
    if best:
        step_of = dict(zip(study.arms, best.steps, strict=True))
        suite = bool(study.word_value("TASKS"))
        runs = [_run_cost(cell, step_of[cell.arm], best, gpu, suite) for cell in study.cells]
        if isinstance(baseline.budget, ClockBudget):
            notes.append("the clock ends each run: its tokens are expected, and differ between arms as their speeds do")
        disk = sum(run.checkpoints_gb for run in runs) * study.max_runs / len(study.cells)
        if (free := _free_gigabytes(study.out)) is not None and disk > free:
            shortage = f"the disk of {study.out} has {free:.0f} GB free, and the checkpoints need {disk:.0f} GB"
            if _runs_use_this_disk(study):
                refused.append(shortage)
            else:
                notes.append(f"{shortage}; that is no obstacle if the runs will be elsewhere. OUT=folder is checked")
    return StudyCost(study, gpu, gpus, candidates, runs, refused, notes)


def _run_cost(cell: Cell, step: PredictedStep, best: FittingLayout, gpu: GPU, suite: bool) -> RunCost:
    """The cost of one run.

    Args:
        cell: the run, with its arm and seed.
        step: the predicted seconds of an optimizer step.
        best: the parallel layout in which the run is trained.
        gpu: the kind of GPU.
        suite: whether the run is also evaluated on the suite of 27 tasks.
    """
    run, gpus = cell.run, best.layout.gpus
    per_step = run.train.batch * run.model.seq
    speed = per_step / step.seconds  # tokens a second; the smaller batches of a ramp are taken to be as fast
    if isinstance(run.budget, ClockBudget):
        hours = low = high = run.budget.seconds / HOUR
        steps = int(run.budget.seconds * speed / per_step)
        tokens = steps * per_step
    else:
        tokens, steps = run.tokens, run.steps
        hours = tokens / speed / HOUR
        low, high = hours * step.low / step.seconds, hours * step.high / step.seconds
    parameter_count, flops = count_parameters(run.model), flops_per_token(run.model)
    mtbf = NODE_MTBF["BLOOM"] / max(1, gpus // gpu.node)
    save_interval = feasible_save_interval(ASSUMED["stall"], ASSUMED["write"], mtbf)
    evaluation_tokens = SUITE_TOKENS if suite else PROBE_TOKENS
    return RunCost(
        arm=cell.arm,
        seed=cell.seed,
        parameters=parameter_count,
        tokens=tokens,
        steps=steps,
        flops=tokens * flops,
        peak_flops=hours * HOUR * gpus * gpu.peak,
        hours=hours,
        low=low,
        high=high,
        tokens_per_second=speed,
        gib=best.gib,
        gpu_hours=hours * gpus,
        kwh=hours * gpus * gpu.watts / 1000,
        checkpoints_gb=parameter_count
        * (CHECKPOINT_BYTES * run.layout.keep + WEIGHT_BYTES * (1 + len(run.milestones)))
        / 1e9,
        save_every_minutes=save_interval / 60,
        evaluation_gpu_hours=evaluation_tokens * flops / 3 / (EVAL_UTILISATION * gpu.peak) / HOUR,
    )


def _runs_use_this_disk(study: Study) -> bool:
    """Whether the study's runs will probably use the disk of this machine: OUT is given, this machine has a GPU, or a
    cluster is configured. False, for example, on a laptop that only plans studies."""
    return bool(study.word_value("OUT")) or sees_gpu() or find_site_file() is not None


def detectable_text(study: Study) -> str:
    """Lines of text on the differences between arms, and the effects of a factorial, that the study can detect
    (ablations/plan/power.py)."""
    from ablations.plan.epochs import training_text_hashes

    base = study.base
    squares: dict[str, float] = {}
    if design := study.factorial:
        for effect in design.effects:
            name = "main effects" if effect_order(effect) == 1 else f"interactions of {effect_order(effect)}"
            squares[name] = sum(weight * weight for weight in design.coefficients(effect).values())
    arms, seeds = 1 + len(study.compared_arms), len(study.seeds)
    if study.criteria.sequential:
        seeds = study.criteria.seeds
    line = power.describe_detectable(
        base, arms, seeds, tests=study.number_of_tests, effects=squares, texts=training_text_hashes(study)
    )
    line = f"{line}; with all {seeds} seeds, if these were there from the start" if study.criteria.sequential else line
    published = power.describe_detectable_on_suite(base, arms, seeds)
    return "\n".join(filter(None, (line, published)))


def _free_gigabytes(out: Path) -> float | None:
    """The free GB on the disk of the folder `out`, which need not exist yet; None where they are unknown."""
    existing = next((folder for folder in (out, *out.absolute().parents) if folder.exists()), None)
    try:
        return shutil.disk_usage(existing).free / 1e9 if existing else None
    except OSError:
        return None


def _check_comparability(study: Study) -> tuple[list[str], list[str]]:
    """Check a study for differences in the numbers of parameters, a wrong horizon of learning-rate decay, and repeated
    text. Returns (reasons against starting the study, other notes), each a list of sentences."""
    refused: list[str] = []
    notes: list[str] = []
    base = study.cell(study.arms[0], study.seeds[0]).run
    for arm in study.arms[1:]:
        cell = study.cell(arm, study.seeds[0])
        difference = count_parameters(cell.run.model) / count_parameters(base.model) - 1
        if abs(difference) > MAX_PARAMETER_DIFFERENCE:
            reasons = [
                OWN_PARAMETERS.get(key) or ("its name says so" if value in UNMATCHED_VARIANTS else "")
                for key, value in cell.delta.items()
            ]
            if arm.partition("=")[0] in PARTS:
                reasons = ["a whole part of the recipe is the variant"]
            why = "; ".join(filter(None, reasons))
            if base.ends_by_clock:  # a larger arm is slower, and trains on fewer tokens
                why = why or "the clock makes the arms equal in time, not in size"
            statement = f"{arm} has {difference:+.1%} parameters of the baseline"
            (notes if why else refused).append(
                f"{statement}: {why}" if why else f"{statement}, and its factor is not size"
            )
    if (decay := base.train.decay_tokens) and decay != base.tokens:
        ratio = decay / base.tokens
        statement = (
            f"the learning rate decays over {short_number(decay)} tokens, the budget is {short_number(base.tokens)}"
        )
        (notes if 1 / MAX_DECAY_RATIO <= ratio <= MAX_DECAY_RATIO else refused).append(statement)
    from ablations.plan.epochs import describe_epochs

    for line in describe_epochs(study):
        (refused if "more than one epoch" in line else notes).append(line)
    return refused, notes


def cost_figure(cost: StudyCost) -> str:
    """A bar chart of the GPU-hours of each arm over all its seeds, as SVG text. The bars are divided into the parts of
    a step and evaluation. "" where no layout fits."""
    groups = {
        "matrix products": ("matmul", "small"),
        "attention": ("attention",),
        "elementwise": ("traffic", "update"),
        "communication": ("tensor", "network"),
        "launching": ("launch",),
    }
    if not cost.best:
        return ""
    rows = []
    for arm, step in zip(cost.study.arms, cost.best.steps, strict=True):
        arm_runs = [run for run in cost.runs if run.arm == arm]
        hours = sum(run.gpu_hours for run in arm_runs)
        parts = [hours * sum(step.parts[name] for name in names) / step.seconds for names in groups.values()]
        parts.append(sum(run.evaluation_gpu_hours for run in arm_runs))
        rows.append((arm, parts, f"{short_number(hours)} GPU-hours"))
    title = f"{cost.study.factor}, {cost.study.base.size} on {cost.gpus} {cost.gpu.name}"
    return bar_chart(title, rows, [*groups, "evaluation"], "GPU-hours, all seeds")


def highest_cost_lines(cost: StudyCost, budget_gpu_hours: float | None) -> list[str]:
    """Lines of text on the study's cost with all seeds that MORE=auto may add; empty where the number of seeds is
    fixed. `budget_gpu_hours`: the user's budget, to compute the study's share of it; None: there is no budget."""
    if not (most := cost.at_most):
        return []
    share = f", {most['gpu_hours'] / budget_gpu_hours:.2%} of the budget" if budget_gpu_hours else ""
    return [
        f"at most (MORE=auto, MAX_SEEDS={most['seeds']}): {most['runs']} runs, {amount_text(most['gpu_hours'])} "
        f"GPU-hours{share}, {amount_text(most['kwh'])} kWh, {amount_text(most['disk_gb'])} GB; "
        "it ends when every arm is decided"
    ]


def cost_lines(cost: StudyCost, budget_gpu_hours: float | None) -> list[str]:
    """The plan of a study on given hardware, as lines of text. `budget_gpu_hours`: the user's budget, to compute the
    study's share of it; None: there is no budget."""
    study, gpu = cost.study, cost.gpu
    out = [f"{study.title}, on {cost.gpus} {gpu.name} for each run ({gpu.source})", f"  question  {study.question}", ""]
    if cost.candidates:
        out.append(f"{'layout':52} {'s/step':>7} {'80% interval':>16} {'GiB':>6} {'tokens/s/GPU':>13}")
        for candidate in layouts_to_show(cost.candidates):
            step, layout = candidate.steps[0], candidate.layout
            speed = layout.batch * study.base.model.seq / step.seconds / layout.gpus
            interval = f"{step.low:.3g} to {step.high:.3g}"
            missing = " (not in our engine)" if layout.recompute else ""
            out.append(
                f"{candidate.label:52} {step.seconds:7.3g} {interval:>16} {candidate.gib:6.1f} {speed:13,.0f}{missing}"
            )
        out += [f"  speeds: {cost.candidates[0].steps[0].basis}", ""]
    if cost.runs:
        out.append(
            f"{'arm':28} {'seed':>4} {'parameters':>14} {'tokens':>7} {'steps':>8} {'FLOPs':>8} {'at peak':>8} "
            f"{'hours':>8} {'interval':>16} {'GPU-h':>8} {'kWh':>7} {'disk GB':>8} {'eval GPU-h':>10}"
        )
        for run in cost.runs:
            out.append(
                f"{run.arm[:28]:28} {run.seed:4} {run.parameters:14,} {short_number(run.tokens):>7} {run.steps:8,} "
                f"{run.flops:8.1e} {run.peak_flops:8.1e} "
                f"{run.hours:8.3g} {f'{run.low:.3g} to {run.high:.3g}':>16} {run.gpu_hours:8.4g} "
                f"{run.kwh:7.4g} {run.checkpoints_gb:8.3g} {run.evaluation_gpu_hours:10.2g}"
            )
        total, kwh = cost.gpu_hours, sum(run.kwh for run in cost.runs)
        share = f", {total / budget_gpu_hours:.2%} of the budget" if budget_gpu_hours else ""
        disk, every = sum(run.checkpoints_gb for run in cost.runs), cost.runs[0].save_every_minutes
        out += [
            "",
            f"in all: {amount_text(total)} GPU-hours{share}; {sum(run.flops for run in cost.runs):.3g} FLOPs of the "
            f"models, {sum(run.peak_flops for run in cost.runs):.3g} at the GPUs' peak, as Cramming counts",
            f"energy: {amount_text(kwh)} kWh at most, of the GPUs alone, at {gpu.watts:.0f} W",
            f"disk: {amount_text(disk)} GB of checkpoints and weights",
            *highest_cost_lines(cost, budget_gpu_hours),
            f"a checkpoint every {every:.0f} minutes (assumed: a stall of "
            f"{ASSUMED['stall']:g} s; published: BLOOM's failures)",
        ]
    out += [*schedule_drawings(study), detectable_text(study)]
    out += [f"note: {line}" for line in cost.notes]
    out += [f"refused: {line}" for line in cost.refused]
    return out
