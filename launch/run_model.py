"""Builds the model of a run, with the layers that its precision and tensor parallelism require."""

import torch.distributed as dist

from ablations.config import ConfigError, Run
from model.fp8 import FP8_LAYERS
from model.gpt import GPT
from model.linear import Layers
from model.shard import SINGLE_RANK, RankGroup


def tensor_parallel_group(run: Run) -> RankGroup:
    """The tensor parallel group of this rank: the ranks that hold one copy of the model together. Call it after
    `deepspeed_setup.initialise_process`. Raises ConfigError where the number of ranks is no multiple of layout.tp."""
    if run.layout.tp == 1:
        return SINGLE_RANK
    if dist.get_world_size() % run.layout.tp:
        raise ConfigError(f"{dist.get_world_size()} ranks were started: no multiple of layout.tp={run.layout.tp}")
    from model.parallel import TensorParallel

    return TensorParallel(run.layout.tp)


def layer_factory(run: Run, tp: RankGroup) -> Layers:
    """The factory that makes the model's layers, for the run's precision and the tensor parallel group `tp`. Raises
    ConfigError for train.precision=fp8 with layout.tp above 1."""
    if run.train.precision != "fp8":
        return tp.layers
    if tp.size > 1:
        raise ConfigError("train.precision=fp8 needs layout.tp=1: the layers that are cut multiply in bf16 at least")
    return FP8_LAYERS


def build_model(run: Run) -> GPT:
    """The run's model with its initial weights. Call it after `deepspeed_setup.initialise_process`."""
    tp = tensor_parallel_group(run)
    return GPT(run.model, run.seed, tp, layer_factory(run, tp))
