"""Breaks the code in each of the ways on record and shows what notices: `make mutations`, ARGS="rotary bias" for a few.

A mutation is a replacement of text in a copy of the sources. The mutant is asked what every run is asked before its
first step (the proofs, the audit of parameter groups, the engine's effective settings), and tested. The exit code is 1
when a mutant passes the tests, or passes the proof that should see it; when its text is no longer in the sources; and
when the code is at fault before it is broken.
"""

import argparse
import datetime
import gc
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ablations", "data", "eval", "launch", "model")
FOREIGN = (
    "numpy",
    "torch",
    "deepspeed",
    "pytest",
    "transformers.models.bloom.modeling_bloom",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
    "megatron.core.datasets.gpt_dataset",
    "datatrove",
)
# six heads, no power of two, as in the tests
SMALL = (
    "train.precision=fp32 train.batch=4 layout.micro_batch=4 "
    "model.layers=2 model.hidden=48 model.heads=6 model.seq=32 model.vocab=120"
)
MODEL = "tests/test_model.py tests/test_mutants.py tests/test_proof.py::test_every_variant_proves_itself"
GPU, GPU_STEP, BF16 = "tests/test_gpu.py", "tests/test_gpu_step.py", "launch/bf16.py"
TRAIN = "tests/test_mutants.py tests/test_train.py::test_the_engine_is_adamw_with_clipping_and_the_schedule"
DATA = "tests/test_batches.py::test_same_whatever_was_asked_before"
SCHEDULE, STUDY_FILES, CLOCK = "tests/test_schedule.py", "tests/test_study_files.py", "tests/test_clock.py"
OBJECTIVE, BUDGET, FP8 = "tests/test_objective.py", "tests/test_budget.py", "tests/test_fp8.py"
RANKS = "tests/test_parallel.py"
MLM, ENCODER = "tests/test_mlm.py", "tests/test_encoder.py"
SEEDED = (
    "tests/test_train.py::test_the_seed_draws_the_order_of_the_data "
    "tests/test_train.py::test_what_is_dropped_differs_by_step_and_by_seed"
)
RESUME = "tests/test_resume.py::test_a_damaged_checkpoint_costs_steps_and_nothing_else"
DAMAGE = "tests/test_checkpoint.py::test_a_damaged_checkpoint_gives_way_to_the_one_before"
BACK = "tests/test_resume.py::test_after_a_spike_the_run_goes_back_and_past_the_data"
REPORT, STATISTICS = "tests/test_report.py", "tests/test_statistics.py"
RATIO = f"{STATISTICS}::test_a_ratio_of_sums_is_no_mean_of_ratios"
PASSAGES = f"{STATISTICS}::test_items_that_share_a_passage_are_one"
UNEQUAL = f"{STATISTICS}::test_rate_of_wrong_verdicts_of_few_documents_of_unequal_sizes"
FEW = f"{STATISTICS}::test_few_independent_items_give_no_verdict"
EQUIVALENT = f"{STATISTICS}::test_equivalence_is_two_one_sided_tests"
LEFT_OUT = f"{REPORT}::test_a_task_that_differs_is_left_out_of_the_comparison"
OTHER_TEXT = f"{REPORT}::test_arms_that_read_another_text_under_the_same_name_are_not_compared"
RECOMPUTED = f"{REPORT}::test_scores_that_are_not_those_of_the_items_are_refused"
STEERED = f"{REPORT}::test_a_strangers_names_cannot_steer_a_terminal_or_a_page"
PRINTABLE = f"{REPORT}::test_every_format_is_printable_whatever_it_is_given"
FULL_DISK = f"{REPORT}::test_a_full_disk_leaves_the_record_as_it_was"
RUNDIR = "tests/test_rundir.py"
DEDUP = (
    "tests/test_data_recipe.py::test_near_duplicates_where_there_are_no_spaces "
    "tests/test_data_recipe.py::test_the_held_out_one_of_a_pair_stays_wherever_it_stands"
)
COUNTS = "tests/test_data_recipe.py::test_bytes_are_not_characters"
ORDERS = "tests/test_data_recipe.py::test_orders_and_their_reverses"
IDENTITY = (
    "tests/test_data_identity.py::test_a_file_changed_in_place_with_size_and_time_kept_is_another_one "
    "tests/test_data_identity.py::test_a_corpus_that_changed_between_two_commands_is_refused_before_any_work "
    "tests/test_data_identity.py::test_damage_is_named_with_what_helps"
)
TOKENIZER = "tests/test_tokenizer.py::test_added_tokens_are_those_of_hugging_face"
PLAN_MODEL, PLAN_STUDY, PLAN_LAWS = "tests/test_plan_model.py", "tests/test_plan_study.py", "tests/test_plan_laws.py"
PLAN_DECISION, PLAN_LADDER = "tests/test_plan_decision.py", "tests/test_plan_ladder.py"
PARALLEL, SHARD = "model/parallel.py", "model/shard.py"
OBJ, CROSS = "model/objective.py", "model/kernels/cross_entropy.py"
ROTATION, KERNEL = "model/kernels/rotation.py", "model/kernels/attention.py"
GPT, ATTENTION, POSITION, MLP = "model/gpt.py", "model/attention.py", "model/position.py", "model/mlp.py"

JUDGED_BYTES = "tests/test_judge.py::test_bytes_are_counted_and_not_characters"


class Mutation(NamedTuple):
    name: str
    record: str  # where it happened; empty: nowhere that we know of
    setting: str  # the run that it concerns, as on the command line
    proof: str  # the key whose proof must fail; empty: not a thing that proofs look at, or beyond what they resolve
    edits: list[tuple[str, str, str]]  # file, text, its replacement
    tests: str = MODEL


def one(
    name: str, record: str, setting: str, proof: str, file: str, old: str, new: str, tests: str = MODEL
) -> Mutation:
    return Mutation(name, record, setting, proof, [(file, old, new)], tests)


MDS = "Megatron-DeepSpeed"
MUTATIONS = [
    # positions
    one(
        "ALiBi's bias never reaches the layers",
        f"BigScience tr7a, {MDS} #222",
        "model.pos=alibi",
        "model.pos",
        GPT,
        "            self.position,\n            heads,",
        '            POSITIONS["none"](self.cfg),\n            heads,',
    ),
    one(
        "ALiBi is accepted and means none",
        "megatron-core GPTModel",
        "model.pos=alibi",
        "model.pos",
        POSITION,
        '"alibi": ALiBi',
        '"alibi": Position',
    ),
    # proofs measure the executor of the device they run on
    one(
        "ALiBi's bias is lost in the GPU's executor only",
        f"{MDS} #222",
        "model.pos=alibi",
        "",
        ATTENTION,
        "return s + position.bias(h, q, k).to(s.dtype)",
        "return s",
    ),
    one(
        "ALiBi's bias is lost in the compiled graph only",
        "",
        "model.pos=alibi layout.compile=always",
        "layout.compile",
        ATTENTION,
        "torch.where(seen, position.bias(h, q, k),",
        "torch.where(seen, position.bias(h, q, k) * (not torch.compiler.is_compiling()),",
        "tests/test_proof.py::test_the_compiled_graph_is_the_model",
    ),
    one(
        "ALiBi's bias is scaled like the scores",
        "BigScience: by the layer number",
        "model.pos=alibi",
        "model.pos",
        ATTENTION,
        "torch.where(seen, position.bias(h, q, k),",
        "torch.where(seen, position.bias(h, q, k) * (x_BTD.shape[-1] // heads) ** -0.5,",
    ),
    one(
        "every rank has the first heads' slopes",
        f"{MDS} #244",
        "model.pos=alibi",
        "model.pos",
        POSITION,
        "self.slopes[self.first_head + h]",
        "self.slopes[h % (len(self.slopes) // 2)]",
    ),
    one(
        "slopes of heads that are no power of two",
        "",
        "model.pos=alibi",
        "model.pos",
        POSITION,
        "n = 2 ** math.floor(math.log2(heads))",
        "n = heads",
    ),
    one(
        "rotary returns q and k unrotated",
        "Cramming b91e375",
        "model.pos=rotary",
        "model.pos",
        POSITION,
        "return rotation.rotate(q_BHTK, cos, sin), rotation.rotate(k_BHTK, cos, sin)",
        "rotation.rotate(q_BHTK, cos, sin), rotation.rotate(k_BHTK, cos, sin)\n        return q_BHTK, k_BHTK",
    ),
    one(
        "rotary turns q only",
        "",
        "model.pos=rotary",
        "model.pos",
        POSITION,
        "rotation.rotate(k_BHTK, cos, sin)",
        "k_BHTK",
    ),
    one(
        "rotary pairs neighbours, angles are for halves",
        "GPT-J's and GPT-NeoX's layouts mixed",
        "model.pos=rotary",
        "model.pos",
        ROTATION,
        "torch.cat((-b, a), dim=-1)",
        "torch.stack((-x_BHTK[..., 1::2], x_BHTK[..., ::2]), dim=-1).flatten(-2)",
    ),
    # a permutation of the weights turns it into the declared model, so only a reference with weights can tell
    Mutation(
        "rotary pairs neighbours throughout",
        "GPT-J's layout for GPT-NeoX's weights",
        "model.pos=rotary",
        "",
        [
            (
                ROTATION,
                "torch.cat((-b, a), dim=-1)",
                "torch.stack((-x_BHTK[..., 1::2], x_BHTK[..., ::2]), dim=-1).flatten(-2)",
            ),
            (POSITION, "freq).repeat(1, 2)", "freq).repeat_interleave(2, dim=1)"),
        ],
    ),
    one(
        "the learned table is not added",
        "",
        "model.pos=learned",
        "model.pos",
        POSITION,
        "return x_BTD + self.table[:T]",
        "return x_BTD",
    ),
    one(
        "the learned table is added twice",
        "",
        "model.pos=learned",
        "model.pos",
        POSITION,
        "return x_BTD + self.table[:T]",
        "return x_BTD + 2 * self.table[:T]",
    ),
    one(
        "scaled sinusoids are not scaled",
        "",
        "model.pos=scaled-sinusoidal",
        "model.pos",
        POSITION,
        "self.scale * self.waves(x_BTD, positions_BT)",
        "self.waves(x_BTD, positions_BT)",
    ),
    # attention
    Mutation(
        "scores are not scaled",
        "",
        "model.pos=rotary",
        "model.pos",
        [
            (KERNEL, "alpha=ctx.scale / layer", "alpha=1.0 / layer"),
            (ATTENTION, "attn_mask=bias", "attn_mask=bias, scale=1.0"),
        ],
    ),
    one("a token sees the next one", "", "", "model.pos", OBJ, "return k <= q\n", "return k <= q + 1\n"),
    one(
        "of a key's gradient only the first queries' share is kept",
        "",
        "",
        "",
        KERNEL,
        "dk[:, visible] += ",
        "dk[:, visible] = ",
    ),
    one(
        "the blocks' shares of the output matrix's gradient are not summed",
        "",
        "",
        "",
        CROSS,
        "weight_grad_VD += ",
        "weight_grad_VD[:] = ",
    ),
    # objective
    one(
        "a prefix is not seen both ways",
        "",
        "model.objective=prefix",
        "model.objective",
        OBJ,
        "return (k <= q) | (k < extents_B[b])",
        "return (k <= q) | (b < 0)",
        OBJECTIVE,
    ),
    # proofs measure the executor of the device they run on
    one(
        "a prefix is not seen in the GPU's executor only",
        "",
        "model.objective=prefix",
        "",
        ATTENTION,
        "return sees(extents_B, b, q, k)",
        "return k <= q",
        OBJECTIVE,
    ),
    one(
        "the prefix is predicted too",
        "Megatron-DeepSpeed without loss-on-targets-only",
        "model.objective=prefix",
        "model.objective",
        OBJ,
        ">= extents_B[:, None] - 1",
        ">= 0 * extents_B[:, None]",
        OBJECTIVE,
    ),
    one(
        "ALiBi favours what comes after",
        "BLOOM's bias by key position",
        "model.objective=prefix model.pos=alibi",
        "model.pos",
        POSITION,
        "(q - k).abs()",
        "(q - k)",
        OBJECTIVE,
    ),
    one(
        "prefixes depend on how a batch is cut",
        "",
        "model.objective=prefix",
        "",
        "model/objective.py",
        "np.random.default_rng([seed, n]) for n in (range(B)",
        "np.random.default_rng([seed, n % 50]) for n in (range(B)",
        OBJECTIVE,
    ),
    # what a GPU alone does
    one(
        "a bias is lost in the kernels that take none",
        f"{MDS} #222",
        "model.pos=alibi",
        "model.pos",
        ATTENTION,
        "return not position.has_bias and extents_B is None",
        "return extents_B is None",
        GPU,
    ),
    one(
        "torch's own kernels see what is to come",
        "",
        "model.pos=rotary",
        "model.objective",
        ATTENTION,
        "is_causal=objective.causal",
        "is_causal=False",
        GPU,
    ),
    one("a GPU does not clip", "", "", "", BF16, "/ clip).clamp_min(1.0)", "/ clip).clamp(1.0, 1.0)", GPU_STEP),
    one(
        "a GPU applies an update that is no number",
        "",
        "",
        "",
        BF16,
        "adamw.found_inf = (~norm.isfinite()).float()",
        "adamw.found_inf = torch.zeros_like(norm)",
        GPU_STEP,
    ),
    one(
        "a GPU keeps the last micro-batch only",
        "",
        "",
        "",
        BF16,
        "torch._foreach_add_(sums, grads)",
        "torch._foreach_copy_(sums, grads)",
        GPU_STEP,
    ),
    one("a GPU sums ranks and takes no mean", "", "", "", BF16, "part.mul_(1 / world)", "pass", GPU_STEP),
    one(
        "a checkpoint is saved before its loss is read",
        "",
        "",
        "",
        "launch/train.py",
        "all_of_them=not behind or save_due or log_due",
        "all_of_them=not behind or log_due",
        GPU_STEP,
    ),
    one(
        "a step that is found bad late leaves out later data",
        "",
        "",
        "",
        "launch/train.py",
        "state.step, state.samples = launched.step, launched.samples",
        "pass",
        GPU_STEP,
    ),
    one(
        "each micro-batch of prefixes counts alike",
        "Megatron-DeepSpeed's loss mask",
        "model.objective=prefix",
        "",
        "launch/engine.py",
        "return [count * len(micros)",
        "return [1.0 for _ in counts] or [count * len(micros)",
        OBJECTIVE,
    ),
    one(
        "the masked token is left in the input",
        "",
        "model.objective=mlm",
        "model.objective",
        OBJ,
        "inputs_BT[row, torch.from_numpy(chosen[:replaced])] = tokens.mask",
        "pass",
        MLM,
    ),
    one(
        "MLM attention is causal",
        "Cramming: a causal switch without effect",
        "model.objective=mlm",
        "model.objective",
        OBJ,
        "return (k <= q) | (k > q)",
        "return k <= q  # ",
        MLM,
    ),
    one(
        "the loss is over all positions",
        "",
        "model.objective=mlm",
        "model.objective",
        OBJ,
        "return Batch(inputs_BT, targets_BT, positions_BM)",
        "return Batch(inputs_BT, targets_BT)",
        MLM,
    ),
    one(
        "masks depend on how a batch is cut",
        "",
        "model.objective=mlm",
        "",
        OBJ,
        "draw = np.random.default_rng([seed, number])",
        "draw = np.random.default_rng([seed, row])",
        MLM,
    ),
    one(
        "masks are the same for all seeds",
        "",
        "model.objective=mlm",
        "",
        OBJ,
        "draw = np.random.default_rng([seed, number])",
        "draw = np.random.default_rng([1, number])",
        MLM,
    ),
    # fp16
    one(
        "scores are not divided by the layer's number",
        "",
        "train.precision=fp16 model.qk_scaling=true",
        "model.qk_scaling",
        GPT,
        "functools.partial(attend, layer=number) if self.cfg.qk_scaling else attend",
        "attend",
        OBJECTIVE,
    ),
    one(
        "scores are not multiplied back",
        "BigScience: ALiBi's bias",
        "train.precision=fp16 model.qk_scaling=true",
        "model.pos",
        KERNEL,
        "else score.float() * layer)",
        "else score.float())",
        OBJECTIVE,
    ),
    one(
        "the bias is not divided with the scores",
        f"{MDS} #222",
        "train.precision=fp16 model.qk_scaling=true model.pos=alibi",
        "model.pos",
        KERNEL,
        "beta=1 / layer",
        "beta=1",
        OBJECTIVE,
    ),
    one(
        "the loss scale is DeepSpeed's own",
        "",
        "train.precision=fp16",
        "train.loss_scale_power",
        "launch/deepspeed_setup.py",
        '"initial_scale_power": run.train.loss_scale_power,',
        "",
        BUDGET,
    ),
    one(
        "a resume begins with another loss scale",
        "",
        "train.precision=fp16",
        "",
        "launch/engine.py",
        "for key in state.keys() & set(SCALER):",
        "for key in ():",
        BUDGET,
    ),
    # fp8
    one(
        "fp8 never reaches the layers",
        "",
        "train.precision=fp8",
        "train.precision",
        "launch/run_model.py",
        "return FP8_LAYERS",
        "return tp.layers",
        FP8,
    ),
    one(
        "layers in fp8 compute in bf16",
        "",
        "train.precision=fp8",
        "train.precision",
        "model/fp8.py",
        "return fp8.linear(x.flatten(0, -2), self.weight, self.bias, weight).view(*x.shape[:-1], -1)",
        "return super().forward(x)",
        FP8,
    ),
    one(
        "fp8: products are scaled the wrong way",
        "",
        "train.precision=fp8",
        "train.precision",
        "model/kernels/fp8.py",
        "        1 / a,\n        one,\n        1 / b,\n",
        "        a,\n        one,\n        b,\n",
        FP8,
    ),
    one(
        "fp8: gradients are cast without their scale",
        "",
        "train.precision=fp8",
        "train.precision",
        "model/kernels/fp8.py",
        "g8_NF = cast(grads[0], g, BACKWARD)",
        "g8_NF = grads[0].to(BACKWARD)",
        FP8,
    ),
    one(
        "fp8: the weight gradient's input has two bits",
        "",
        "train.precision=fp8",
        "train.precision",
        "model/kernels/fp8.py",
        "bias_grad = grads[0]",
        "x8_ND = x8_ND.to(BACKWARD).to(FORWARD); bias_grad = grads[0]",
        FP8,
    ),
    one(
        "on a GPU the proofs measure a kernel that does not train",
        "",
        "model.pos=alibi",
        "",
        ATTENTION,
        '{"BACKEND": "TRITON"}',
        '{"BACKEND": "AUTO"}',
        GPU,
    ),
    one(
        "fp8: weights that were cast once stay so",
        "",
        "train.precision=fp8",
        "",
        "model/fp8.py",
        "        weight = fp8.cast_weight(self.weight)\n",
        "        if self._buffers.get('scale') is not None:\n            self.is_cast = True\n            return\n"
        "        weight = fp8.cast_weight(self.weight)\n",
        FP8,
    ),
    one(
        "fp8: what was cast is read after the update",
        "",
        "train.precision=fp8",
        "",
        "model/fp8.py",
        "            layer.is_cast = False\n",
        "            pass\n",
        f"{FP8}::test_a_weight_that_was_cast_is_never_used_after_it_has_changed",
    ),
    one(
        "fp8: the transposed weight is not the weight",
        "",
        "train.precision=fp8",
        "train.precision",
        "model/kernels/fp8.py",
        "return Weight(w8_FD, w8_FD.t().contiguous(), by)",
        "return Weight(w8_FD, w8_FD.reshape(w8_FD.t().shape), by)",
        FP8,
    ),
    one(
        "fp8: weights are cast in every micro-batch",
        "",
        "train.precision=fp8",
        "",
        "launch/engine.py",
        "        with weights_cast(self.model):  # the last",
        "        if True:  # the last",
        FP8,
    ),
    one(
        "q, k and v are read head by head",
        "BLOOM's layout",
        "",
        "model.pos",
        GPT,
        ".view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)",
        ".view(B, T, self.heads, 3, -1).permute(3, 0, 2, 1, 4)",
    ),
    # norms and blocks
    one(
        "the embedding norm comes after positions",
        "",
        "model.embnorm=true",
        "model.embnorm",
        GPT,
        "self.position.embed(self.embnorm(self.embed(tokens_BT)), positions_BT)",
        "self.embnorm(self.position.embed(self.embed(tokens_BT), positions_BT))",
    ),
    one(
        "the embedding norm is not applied",
        "",
        "model.embnorm=true",
        "model.embnorm",
        GPT,
        "self.embnorm(self.embed(tokens_BT))",
        "self.embed(tokens_BT)",
    ),
    one("the final norm is left out", "", "", "model.norm", GPT, "return self.norm(x_BTD)", "return x_BTD"),
    one(
        "RMSNorm is LayerNorm",
        "",
        "model.norm=rmsnorm",
        "model.norm",
        "model/norm.py",
        '"rmsnorm": nn.RMSNorm',
        '"rmsnorm": nn.LayerNorm',
    ),
    one(
        "post-LN is pre-LN",
        "Cramming: norm_scheme ignored",
        "model.block=post-ln",
        "model.block",
        GPT,
        '"post-ln": PostLN',
        '"post-ln": Block',
    ),
    one(
        "parallel blocks are serial",
        "",
        "model.block=parallel",
        "model.block",
        GPT,
        "self.mlp(chosen(y_BTD, only))",
        "self.mlp(self.norm1(x_BTD))",
    ),
    one(
        "one norm has another eps",
        "",
        "",
        "model.norm_eps",
        GPT,
        "self.norm2 = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)",
        "self.norm2 = NORMS[cfg.norm](cfg.hidden, 1e-6)",
    ),
    one(
        "the norm of the embeddings' sum is not applied",
        "Cramming: embedding.normalization",
        "model.sumnorm=true",
        "model.norm",
        GPT,
        "self.sumnorm(self.position.embed(self.embnorm(self.embed(tokens_BT)), positions_BT))",
        "self.position.embed(self.embnorm(self.embed(tokens_BT)), positions_BT)",
        ENCODER,
    ),
    one(
        "final_norm=false is ignored",
        "",
        "model.final_norm=false",
        "model.norm",
        GPT,
        'last = cfg.final_norm and cfg.block != "post-ln"',
        'last = cfg.block != "post-ln"',
        ENCODER,
    ),
    one(
        "the head's GELU is left out",
        "",
        "model.head_transform=bert",
        "model.head_transform",
        GPT,
        "self.norm(gelu(self.dense(x)))",
        "self.norm(self.dense(x))",
        ENCODER,
    ),
    one(
        "the bias of the logits is not added",
        "",
        "model.output_bias=true",
        "model.output_bias",
        GPT,
        "F.pad(x, (0, 1), value=1.0)",
        "F.pad(x, (0, 1), value=0.0)",
        ENCODER,
    ),
    one(
        "the given width of the MLP is ignored",
        "",
        "model.ffn_width=64",
        "model.act",
        "model/config.py",
        "return self.ffn_width",
        "return 4 * self.hidden",
        ENCODER,
    ),
    # MLP, biases, head
    one(
        "GELU by erf for tanh",
        "BigScience's conversions to Hugging Face",
        "",
        "model.act",
        MLP,
        "gelu(self.up(x_BTD))",
        "F.gelu(self.up(x_BTD))",
    ),
    one(
        "evaluation has GELU by erf", "", "", "", "model/kernels/linear.py", '"gelu", [], "tanh"', '"gelu", [], "none"'
    ),
    one(
        "the gated unit is bypassed",
        f"{MDS} #148",
        "model.act=swiglu",
        "model.act",
        MLP,
        "F.silu(self.gate(x_BTD)) * self.up(x_BTD)",
        "gelu(self.up(x_BTD))",
    ),
    one(
        "SwiGLU's halves are swapped",
        "Megatron's layout, changed tensor parallelism",
        "model.act=swiglu",
        "model.act",
        MLP,
        "F.silu(self.gate(x_BTD)) * self.up(x_BTD)",
        "F.silu(self.up(x_BTD)) * self.gate(x_BTD)",
    ),
    one(
        "SwiGLU has GELU's width",
        "",
        "model.act=swiglu",
        "model.act",
        "model/config.py",
        "8 * self.hidden // 3 // 8 * 8 if",
        "4 * self.hidden if",
    ),
    one(
        "the MLP is too narrow",
        'BigScience tr8: "104B" of 58B',
        "",
        "size",
        "model/config.py",
        "else 4 * self.hidden",
        "else 2 * self.hidden",
    ),
    one("GEGLU is SwiGLU", "", "model.act=geglu", "model.act", MLP, '"geglu": GEGLU', '"geglu": SwiGLU'),
    one(
        "a linear layer's wrapper drops the bias",
        "",
        "",
        "model.linear_bias",
        "model/kernels/linear.py",
        "product(x.flatten(0, -2), weight, bias)",
        "product(x.flatten(0, -2), weight)",
    ),
    one(
        "qkv_bias=false is ignored",
        "",
        "model.qkv_bias=false",
        "model.qkv_bias",
        GPT,
        "3 * cfg.hidden, cfg.qkv_bias)",
        "3 * cfg.hidden, True)",
    ),
    one(
        "the tied matrix is a second one",
        "",
        "",
        "model.tied",
        GPT,
        "None if cfg.tied else layers.column(",
        "layers.column(",
    ),
    one(
        "tied=false is ignored",
        "Cramming: tie_weights ignored",
        "model.tied=false",
        "model.tied",
        GPT,
        "(self.embed if self.head is None else self.head).weight",
        "self.embed.weight",
    ),
    one(
        "dropout is ignored",
        "",
        "model.dropout=0.1",
        "model.dropout",
        GPT,
        "self.drop(self.attn(self.norm1(x_BTD), attend, only))",
        "self.attn(self.norm1(x_BTD), attend, only)",
    ),
    one(
        "attention still drops in evaluation",
        "",
        "model.attn_dropout=0.1",
        "model.attn_dropout",
        GPT,
        "self.cfg.attn_dropout if self.training else 0.0",
        "self.cfg.attn_dropout",
    ),
    # initial weights and loss: what they are shows in the tests, proofs look at what the factors do
    one(
        "residual projections start as wide as the others",
        "",
        "",
        "",
        "model/init.py",
        "cfg.init_std / math.sqrt(2 * cfg.layers)",
        "cfg.init_std",
    ),
    Mutation(
        "weights come from one generator in order",
        "the usual way; arms then share no weights",
        "",
        "",
        [
            (
                "model/init.py",
                "    for name, p in model.named_parameters():",
                "    torch.manual_seed(seed)\n    for name, p in model.named_parameters():",
            ),
            ("model/init.py", "generator=generator)", "generator=None)"),
        ],
    ),
    one(
        "the loss is that of the current token",
        "",
        "",
        "model.objective",
        OBJ,
        "rows_BS[:, 1:])\n",
        "rows_BS[:, :-1])\n",
    ),
    one("cross-entropy in bf16", "", "", "", CROSS, "p = logits_NV.float()", "p = logits_NV.clone()"),
    # training
    Mutation(
        "the embedding norm's gain is decayed",
        f"BigScience, {MDS} #191 to #262",
        "model.embnorm=true",
        "train.weight_decay",
        [
            (
                "launch/engine.py",
                "[p for _, p in named if p.dim() >= 2]",
                '[p for n, p in named if p.dim() >= 2 or n == "embnorm.weight"]',
            ),
            (
                "launch/engine.py",
                "[p for _, p in named if p.dim() < 2]",
                '[p for n, p in named if p.dim() < 2 and n != "embnorm.weight"]',
            ),
        ],
        TRAIN,
    ),
    one(
        "clipping is lost",
        "BigScience: the tied embedding on the last stage",
        "train.clip=0.5",
        "train.clip",
        "launch/deepspeed_setup.py",
        '"gradient_clipping": run.train.clip,',
        "",
        TRAIN,
    ),
    one("the schedule does not reach the optimizer", "", "", "", "launch/engine.py", 'group["lr"] = lr', "pass", TRAIN),
    one(
        "a resume loses the optimizer's state",
        "BigScience tr8b, DeepSpeed before 0.5.10",
        "",
        "",
        "launch/engine.py",
        'adam["step"].fill_(state["optimizer"]["adam_step"])',
        "pass",
        TRAIN,
    ),
    one(
        "a resumed run computes with the initial weights",
        "",
        "",
        "",
        "launch/engine.py",
        "self.ds.optimizer.update_lp_params()",
        "pass",
        RESUME,
    ),
    one(
        "what a resumed run drops follows from how long its process has run",
        "",
        "",
        "",
        "launch/engine.py",
        "torch.manual_seed(seed)",
        '"seeded" in self.__dict__ or self.__dict__.update(seeded=torch.manual_seed(seed))',
        RESUME,
    ),
    one(
        "a resumed run's clock begins anew",
        "",
        "",
        "",
        "launch/train.py",
        "state = TrainingState.from_checkpoint(run, engine.load(checkpoints))",
        "state = TrainingState.from_checkpoint(run, engine.load(checkpoints))\n    state.seconds = 0.0",
        RESUME,
    ),
    one(
        "a damaged checkpoint is taken for whole",
        "",
        "",
        "",
        "ablations/safe_files.py",
        'return "" if sha256(path) == expected["sha256"] else',
        'return "" if True else',
        DAMAGE,
    ),
    one(
        "a damaged index of a checkpoint is taken for whole",
        "",
        "",
        "",
        "ablations/rundir.py",
        'if index.pop("sha256") != json_digest(index):',
        'if not index.pop("sha256"):',
        RUNDIR,
    ),
    one(
        "weights that have changed since are those of the run",
        "",
        "",
        "",
        "ablations/rundir.py",
        "complaint = damage(path, expected)",
        'complaint = ""',
        RUNDIR,
    ),
    one(
        "a link is written through",
        "",
        "",
        "",
        "ablations/safe_files.py",
        "os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW |",
        "os.O_WRONLY | os.O_CREAT |",
        RUNDIR,
    ),
    one(
        "a file is renamed before it is on the disk",
        "",
        "",
        "",
        "ablations/safe_files.py",
        "                os.fsync(file.fileno())\n        os.replace",
        "                pass\n        os.replace",
        RUNDIR,
    ),
    one(
        "the log has the last loss for the mean",
        "",
        "",
        "",
        "launch/train.py",
        "math.fsum(state.losses) / len(state.losses)",
        "state.losses[-1]",
        "tests/test_train.py::test_the_layout_leaves_no_trace",
    ),
    one(
        "after a spike the same data come again",
        "",
        "",
        "",
        "launch/train.py",
        "numbers.start + state.skipped + r",
        "numbers.start + r",
        BACK,
    ),
    # tensor parallelism
    one(
        "slopes by the head's place on its rank",
        f"{MDS} #227, #244",
        "",
        "",
        POSITION,
        "self.slopes[self.first_head + h]",
        "self.slopes[h]",
        RANKS,
    ),
    one(
        "norms get another gradient on every rank",
        f"{MDS}: LayerNorms drifted apart",
        "",
        "",
        PARALLEL,
        "gather_output=False,",
        "gather_output=False, disable_grad_reduce=True,",
        RANKS,
    ),
    one(
        "every rank adds the bias",
        "",
        "",
        "",
        PARALLEL,
        "self.in_features, self.out_features = self.input_size_per_partition, out",
        "self.in_features, self.out_features = self.input_size_per_partition, out\n"
        "        if bias:\n"
        "            self.register_forward_hook(lambda m, a, y: y + (m.tp_group.size() - 1) * m.bias)",
        RANKS,
    ),
    Mutation(
        "q, k and v are cut as one block",
        "a new cut for tensor parallelism of an old layout",
        "",
        "",
        [
            (SHARD, 'if name.split(".")[-2] == "qkv":\n        return full', "if False:\n        return full"),
            (SHARD, 'if name.split(".")[-2] == "qkv":\n        return torch', "if False:\n        return torch"),
        ],
        RANKS,
    ),
    one(
        "every rank looks up all tokens",
        "",
        "",
        "",
        PARALLEL,
        "class Column(_Bare,",
        "    def forward(self, ids: Tensor) -> Tensor:\n"
        "        from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region as reduce\n"
        "        return reduce(nn.functional.embedding(ids % len(self.weight), self.weight), self.tp_group)\n\n\n"
        "class Column(_Bare,",
        RANKS,
    ),
    one(
        "what all ranks hold counts on each in the gradient norm",
        "",
        "",
        "",
        PARALLEL,
        "p.tensor_model_parallel = shard_dimension(name) is not None",
        "p.tensor_model_parallel = True",
        RANKS,
    ),
    one(
        "what a rank holds alone does not count in the gradient norm",
        "megatron-core without initialisation",
        "",
        "",
        PARALLEL,
        "p.tensor_model_parallel = shard_dimension(name) is not None",
        "pass",
        RANKS,
    ),
    one(
        "every rank begins with the first part",
        "",
        "",
        "",
        "model/init.py",
        "shard(name, full, tp.rank, tp.size)",
        "shard(name, full, 0, tp.size)",
        RANKS,
    ),
    one(
        "all ranks drop the same attention",
        "",
        "",
        "",
        PARALLEL,
        "torch.manual_seed(seed + self.rank)",
        "torch.manual_seed(seed)",
        RANKS,
    ),
    one(
        "ranks of one model drop differently",
        "",
        "",
        "",
        "launch/train.py",
        "+ state.step) * replicas + replica",
        "+ state.step) * session.world + session.rank",
        RANKS,
    ),
    one(
        "ranks of one model see different samples",
        "",
        "",
        "",
        "launch/train.py",
        "len(numbers) // replicas for r in (replica, replica + 1)",
        "len(numbers) // session.world for r in (session.rank, session.rank + 1)",
        RANKS,
    ),
    one(
        "another cut is loaded as if it were this one",
        "",
        "",
        "",
        "launch/checkpoint.py",
        "return shard(fragment.name, whole, fragment.rank, fragment.size).flatten()",
        "return shard(fragment.name, whole, 0, fragment.size).flatten()",
        RANKS,
    ),
    one(
        "the order of the data is the same for all seeds",
        "",
        "",
        "",
        "launch/train.py",
        "run.model.seq, run.seed,",
        "run.model.seq, 1,",
        SEEDED,
    ),
    one(
        "the order of the data ignores the seed where it is drawn",
        "",
        "",
        "",
        "data/batches.py",
        "SeedSequence([self.seed, epoch])",
        "SeedSequence([1, epoch])",
        SEEDED,
    ),
    one(
        "the same is dropped at every step",
        "",
        "model.dropout=0.1",
        "",
        "launch/train.py",
        "run.seed * 1_000_003 + state.step",
        "run.seed * 1_000_003",
        SEEDED,
    ),
    one(
        "the same is dropped for all seeds",
        "",
        "model.dropout=0.1",
        "",
        "launch/train.py",
        "run.seed * 1_000_003 + state.step",
        "state.step",
        SEEDED,
    ),
    one(
        "the engine seeds every step alike",
        "",
        "model.dropout=0.1",
        "",
        "launch/engine.py",
        "torch.manual_seed(seed)",
        "torch.manual_seed(0)",
        SEEDED,
    ),
    one(
        "the order of the data depends on the budget",
        "",
        "",
        "",
        "launch/train.py",
        "run.model.seq, run.seed,",
        "run.model.seq, run.seed + run.steps,",
        TRAIN,
    ),
    one(
        "the samples of a step are step x batch",
        "",
        "",
        "",
        "ablations/budget.py",
        "begin = stage.sample + (step - stage.step) * stage.size",
        "begin = step * stage.size",
        BUDGET,
    ),
    one(
        "a batch of the ramp is divided by the full batch",
        "",
        "",
        "",
        "launch/engine.py",
        "self.ds.set_train_batch_size(len(batch.inputs_BT) * replicas)",
        "pass",
        BUDGET,
    ),
    one(
        "a batch of the ramp ends where another would",
        "",
        "",
        "",
        "launch/engine.py",
        "self.ds.set_gradient_accumulation_boundary(i == len(micros))",
        "pass",
        BUDGET,
    ),
    one(
        "the cosine ends with the budget",
        "reading 112 billion tokens as the schedule's",
        "",
        "",
        "ablations/run.py",
        "return self.train.decay_tokens or self.tokens",
        "return self.tokens",
        BUDGET,
    ),
    # settings and studies
    one(
        "the ramp ends before the share of the budget that it was given",
        "",
        "",
        "",
        "ablations/run.py",
        "round(train.ramp_share * (train.tokens // self.model.seq))",
        "round(train.ramp_share * train.ramp_share * (train.tokens // self.model.seq))",
        SCHEDULE,
    ),
    one(
        "the warm-up is added to a schedule that rises by itself",
        "",
        "",
        "",
        "ablations/budget.py",
        "if train.schedule in WITH_WARMUP and t < train.warmup:",
        "if t < train.warmup:",
        SCHEDULE,
    ),
    one(
        "dive-slow dives where dive does",
        "",
        "",
        "",
        "ablations/schedule.py",
        "(1 - t) / 0.75",
        "(1 - t) / 0.5",
        SCHEDULE,
    ),
    one("an hour has 60 seconds", "", "", "", "ablations/budget.py", '"h": 3600.0', '"h": 60.0', SCHEDULE),
    one(
        "a range is declared and not checked",
        "",
        "",
        "",
        "ablations/config.py",
        "            check_ranges(name, sections[name])\n",
        "",
        "tests/test_setting.py",
    ),
    one(
        "a limit of a range belongs to it",
        "",
        "",
        "",
        "model/setting.py",
        "self.above is None or number > self.above",
        "self.above is None or number >= self.above",
        "tests/test_setting.py",
    ),
    one(
        "a comma within a whole number is dropped",
        "found here: TOKENS=1,5M planned 15M tokens",
        "",
        "",
        "ablations/values.py",
        "str(value).strip().upper(), re.ASCII",
        'str(value).strip().upper().replace(",", ""), re.ASCII',
        STUDY_FILES,
    ),
    one(
        "digits that are not ASCII count",
        "found here: JOBS=²",
        "",
        "",
        "ablations/words.py",
        'if not re.fullmatch(r"[0-9]{1,9}", text) or',
        "if not text.isdigit() or",
        STUDY_FILES,
    ),
    one(
        "YAML aliases are expanded",
        "found here: a bomb ran for over 90 s",
        "",
        "",
        "ablations/strict_yaml.py",
        "if self.check_event(yaml.AliasEvent):",
        "if False:",
        STUDY_FILES,
    ),
    one(
        "YAML is read as deep as it goes",
        "",
        "",
        "",
        "ablations/strict_yaml.py",
        "if self.depth >= MAX_DEPTH:",
        "if False:",
        STUDY_FILES,
    ),
    one(
        "a broken study file breaks other questions",
        "found here",
        "",
        "",
        "ablations/study.py",
        "            unread.append(",
        "            raise\n            unread.append(",
        STUDY_FILES,
    ),
    one(
        "OUT may lie below a file",
        "found here: OUT=/dev/null/x",
        "",
        "",
        "ablations/study.py",
        "    check_folder(out)\n",
        "",
        STUDY_FILES,
    ),
    one(
        "a run on two devices keeps the rules",
        "",
        "",
        "",
        "eval/report/sections/challenge.py",
        "if devices > 1:",
        "if devices > 2:",
        "tests/test_challenge.py",
    ),
    one(
        "a run that ends late keeps the rules",
        "",
        "",
        "",
        "eval/report/sections/challenge.py",
        "late > TOLERANCE * budget and late > last_step(cell)",
        "late > budget and late > last_step(cell)",
        "tests/test_challenge.py",
    ),
    one(
        "peak FLOPs are of one device, however many there are",
        "",
        "",
        "",
        "ablations/plan/hardware.py",
        "hardware(name).peak * devices * seconds",
        "hardware(name).peak * seconds",
        "tests/test_challenge.py::test_a_day_of_an_a6000_is_13_4_exaflop",
    ),
    one(
        "tokens are invented for a run that ends by the clock",
        "",
        "",
        "",
        "launch/manifest.py",
        "epochs(data, None if run.by_clock else run.tokens, run.model.seq)",
        "epochs(data, run.train.tokens, run.model.seq)",
        CLOCK,
    ),
    one(
        "the masks and the dropout stay with the architecture when the training is taken back",
        "",
        "",
        "",
        "ablations/parts.py",
        'ELSEWHERE.get(key) or SECTIONS.get(key.partition(".")[0], "")',
        'SECTIONS.get(key.partition(".")[0], "")',
        "tests/test_cram_studies.py",
    ),
    one(
        "a part of a preset brings its size along",
        "",
        "",
        "",
        "ablations/parts.py",
        'size_settings = {} if size in names else bundles()[size]["set"]',
        "size_settings: dict[str, Any] = {}",
        "tests/test_cram_studies.py",
    ),
    one(
        "the first of repeated stretches goes too",
        "",
        "",
        "",
        "data/substrings.py",
        "others = np.flatnonzero(~new)",
        "others = np.arange(len(new))",
        "tests/test_substrings.py",
    ),
    one(
        "stretches that share a hash count as the same",
        "",
        "",
        "",
        "data/substrings.py",
        "same[i : i + step] = (left == right).all(axis=1)",
        "same[i : i + step] = True",
        "tests/test_substrings.py::test_texts_that_share_a_hash_are_told_apart",
    ),
    one(
        "stretches reach over the end of a document",
        "",
        "",
        "",
        "data/substrings.py",
        'whole = at + length <= ends[np.searchsorted(ends, at, "right")]',
        "whole = at + length <= ends[-1]",
        "tests/test_substrings.py",
    ),
    one(
        "held-out documents are counted among those that are cut",
        "",
        "",
        "",
        "data/substrings.py",
        """                if not held_out:
                    places.append((shard, number))
                    number += 1
""",
        """                if not held_out:
                    places.append((shard, number))
                number += 1
""",
        "tests/test_substrings.py",
    ),
    one(
        "each rank goes by its own clock",
        "",
        "",
        "",
        "launch/engine.py",
        "reading = clock() if dist.get_rank() == 0 else 0.0",
        "reading = clock()",
        CLOCK,
    ),
    one(
        "the batch grows over the whole budget",
        "",
        "",
        "",
        "launch/training_state.py",
        "run.budget.share(0, self.seconds) / run.train.ramp_share if",
        "run.budget.share(0, self.seconds) if",
        CLOCK,
    ),
    one(
        "compiling is not counted",
        "",
        "",
        "",
        "launch/train.py",
        "Clock(state.seconds + (engine.compile_seconds if isinstance(run.budget, ClockBudget) else 0.0))",
        "Clock(state.seconds)",
        CLOCK,
    ),
    one(
        "a setting added later changes the fingerprint of every run",
        "",
        "",
        "",
        "ablations/run.py",
        " and value != ABSENT.get(key)",
        "",
        "tests/test_report.py::test_the_command_of_a_record_makes_its_runs",
    ),
    one(
        "the order of the data depends on how many are asked for",
        "megatron-core's GPTDataset",
        "",
        "",
        "data/batches.py",
        "int(self._blend[1][number])",
        "int(self._blend[1][len(self._blend[1]) - 1 - number])",
        DATA,
    ),
    # reports and statistics
    one(
        "every look at a study that adds seeds has the whole level",
        "",
        "",
        "",
        "eval/report/compare.py",
        "share(seeds, criteria.seeds, tests) if criteria.sequential else 1.0",
        "1.0",
        f"{REPORT}::test_seeds_that_were_added_until_it_was_decided_are_judged_so_without_being_told",
    ),
    one(
        "each look spends what all looks before it may",
        "",
        "",
        "",
        "eval/statistics/sequential.py",
        "total * time**POWER - spent",
        "total * time**POWER",
        "tests/test_sequential.py::test_what_normal_means_spend_by_each_look_is_what_is_allowed",
    ),
    one(
        "a margin that is typed with the report counts as named before the runs",
        "",
        "",
        "",
        "eval/report/criteria.py",
        "        if margins and len(late) <= 1:",
        "        if margins:",
        f"{REPORT}::test_the_margin_that_was_registered_counts_and_one_that_is_typed_later_is_exploratory",
    ),
    one(
        "a metric that is not the primary one decides",
        "",
        "",
        "",
        "eval/report/findings.py",
        "is_primary = name == self.primary == self.primary_before",
        "is_primary = True",
        f"{REPORT}::test_the_metric_that_was_registered_decides",
    ),
    one(
        "a noise floor of another size, text or budget is used",
        "",
        "",
        "",
        "eval/report/floor.py",
        "            if before != now:",
        "            if False:",
        "tests/test_noise_floor.py::test_a_floor_of_another_baseline_is_refused_with_the_reason",
    ),
    one(
        "a study is judged by its own runs twice, once as a noise floor",
        "",
        "",
        "",
        "eval/report/floor.py",
        'enumerate(metric["results"].items()) if run not in study_runs}',
        'enumerate(metric["results"].items())}',
        "tests/test_noise_floor.py::test_runs_of_the_floor_that_are_the_studys_own_are_counted_once",
    ),
    one(
        "a study that scatters more than its noise floor borrows from it",
        "",
        "",
        "",
        "eval/statistics/seeds.py",
        "    if single and fdtrc(part.dof, floor.dof, ratio) <= LEVEL:",
        "    if False:",
        "tests/test_noise_floor.py::test_nothing_is_borrowed_where_the_study_scatters_more_than_the_floor",
    ),
    one(
        "the interval of a ratio of sums is that of a mean of ratios",
        "",
        "",
        "",
        "eval/statistics/bootstrap.py",
        "total += times @ pairs[:, 0] / (times @ pairs[:, 1])",
        "total += times @ (pairs[:, 0] / pairs[:, 1]) / len(w_N)",
        RATIO,
    ),
    one(
        "the standard error of a ratio of sums is that of a mean of ratios",
        "",
        "",
        "",
        "eval/statistics/items.py",
        "    return float(sqrt((n - 1) / n * (influences(a, b) ** 2).sum()))",
        "    return stderr_of_mean(a / b)",
        RATIO,
    ),
    one(
        "items that share a passage are independent",
        "",
        "",
        "",
        "eval/statistics/items.py",
        "    if len(names) == len(w_N):",
        "    if True:",
        PASSAGES,
    ),
    one(
        "documents of unequal sizes tell as much as equal ones",
        "",
        "",
        "",
        "eval/statistics/items.py",
        "effective_number(w_N) - 1)",
        "n - 1)",
        PASSAGES,
    ),
    one(
        "a large document has no more influence than its share",
        "",
        "",
        "",
        "eval/statistics/items.py",
        "b) / (total - b), nan=inf",
        "b) / total, nan=inf",
        f"{UNEQUAL} {RATIO}",
    ),
    one(
        "one document is enough for a verdict",
        "",
        "",
        "",
        "eval/statistics/items.py",
        "FEWEST_ITEMS = 3 ",
        "FEWEST_ITEMS = 0 ",
        f"{REPORT}::test_one_held_out_document_gives_no_verdict",
    ),
    one(
        "equivalence is claimed at twice the level",
        "",
        "",
        "",
        "eval/statistics/comparison.py",
        "quantile(2 * level, self.seeds, self.items) <= margin",
        "quantile(4 * level, self.seeds, self.items) <= margin",
        EQUIVALENT,
    ),
    one(
        "a difference within noise is equivalent",
        "",
        "",
        "",
        "eval/statistics/comparison.py",
        "        return abs(self.difference) + quantile(2 * level, self.seeds, self.items) <= margin",
        "        return abs(self.difference) <= margin",
        EQUIVALENT,
    ),
    one(
        "tasks of another chance level are compared",
        "",
        "",
        "",
        "eval/report/comparable.py",
        'TASK = ("metric", "version", "chance", ',
        'TASK = ("metric", "version", ',
        LEFT_OUT,
    ),
    one(
        "a mean over more tasks is compared with one over fewer",
        "",
        "",
        "",
        "eval/report/compare.py",
        "        if all(set(tasks_of(cells[run], name)) == set(tasks) for run in runs):",
        "        if runs:",
        f"{LEFT_OUT} {REPORT}::test_a_run_that_was_asked_more_is_compared_on_what_both_were_asked",
    ),
    one(
        "a corpus that changed between two runs is compared",
        "",
        "",
        "",
        "eval/report/comparable.py",
        "        read.setdefault(declared, sha256) == sha256",
        "        read.setdefault(declared, sha256)",
        OTHER_TEXT,
    ),
    one(
        "a score is believed, whatever its items are",
        "",
        "",
        "",
        "eval/report/scores.py",
        '    if not abs(entry["value"] - value) <= TOLERANCE',
        "    if False and TOLERANCE",
        RECOMPUTED,
    ),
    one(
        "a headline is believed, whatever its tasks are",
        "",
        "",
        "",
        "eval/report/scores.py",
        "        if claimed and not abs(",
        "        if False and not abs(",
        RECOMPUTED,
    ),
    one(
        "control characters reach a figure",
        "",
        "",
        "",
        "ablations/drawing.py",
        "html.escape(printable(words))",
        "html.escape(words)",
        PRINTABLE,
    ),
    one(
        "control characters reach the report",
        "",
        "",
        "",
        "eval/report/runs.py",
        '    return printable(str(value)).replace("\\n", " ")',
        "    return str(value)",
        STEERED,
    ),
    one(
        "files of a report are written over those that are there",
        "",
        "",
        "",
        "eval/report/record.py",
        'folder / f".{name}.{os.getpid()}.tmp" for name in texts',
        "folder / name for name in texts",
        FULL_DISK,
    ),
    one(
        "the keeper among near duplicates is not the held-out one",
        "",
        "",
        "",
        "data/dedup.py",
        "keeper = next((node for node in members if valid[node]), members[0])",
        "keeper = members[0]",
        DEDUP,
    ),
    one(
        "text without spaces is one word",
        "",
        "",
        "",
        "data/dedup.py",
        "        if not self._any.search(text):\n            return text.split()",
        "        if True:\n            return text.split()",
        DEDUP,
    ),
    one("every Thai letter is a word", "", "", "", "data/dedup.py", "LETTERS = 4  #", "LETTERS = 400  #", DEDUP),
    one(
        "characters are counted for bytes by the filters",
        "",
        "",
        "",
        "data/filters.py",
        "before, size = document.text, len(document.text.encode())",
        "before, size = document.text, len(document.text)",
        COUNTS,
    ),
    one(
        "characters are counted for bytes of the text",
        "",
        "",
        "",
        "data/text.py",
        "count, size = count + 1, size + len(text)\n",
        "count, size = count + 1, size + len(text.decode())\n",
        COUNTS,
    ),
    one(
        "characters are counted for bytes of the documents",
        "",
        "",
        "",
        "data/encode.py",
        "sizes.append((len(text), len(text.encode()), sentences))",
        "sizes.append((len(text), len(text), sentences))",
        COUNTS,
    ),
    one(
        "characters are counted for bytes of a domain",
        "",
        "",
        "",
        "data/tokens.py",
        "    return [len(text) for text in encoded], words",
        "    return [len(text) for text in texts], words",
        COUNTS,
    ),
    one(
        "a damaged file of the store is taken for whole",
        "",
        "",
        "",
        "data/store.py",
        '        if now["sha256"] != files[name]["sha256"]:',
        '        if not now["sha256"]:',
        IDENTITY,
    ),
    one(
        "a file changed in place with its times kept is not read again",
        "",
        "",
        "",
        "data/store.py",
        "state.st_ino, state.st_mtime_ns, state.st_ctime_ns]",
        "state.st_ino, state.st_mtime_ns]",
        IDENTITY,
    ),
    one(
        "a new arm is compared with runs on another text",
        "",
        "",
        "",
        "launch/data_identity.py",
        "    if sentences:\n",
        "    if not sentences and False:\n",
        IDENTITY,
    ),
    one(
        "added tokens that are not special are dropped",
        "",
        "",
        "",
        "data/byte_bpe.py",
        '{"added_tokens": plain, "post_processor": None}',
        '{"added_tokens": [], "post_processor": None}',
        TOKENIZER,
    ),
    one(
        "a reversed order is the order itself",
        "",
        "",
        "",
        "data/filters.py",
        "-keys if descending else keys",
        "keys",
        ORDERS,
    ),
    # plans
    one(
        "the pipeline fills and drains at no cost",
        "",
        "",
        "",
        "ablations/plan/throughput.py",
        "    fill = (count + pp - 1) / count",
        "    fill = 1.0",
        PLAN_MODEL,
    ),
    one(
        "spare nodes are counted as at work",
        "",
        "",
        "",
        "ablations/plan/resources.py",
        "(self.nodes - self.spare) * self.per_node",
        "self.nodes * self.per_node",
        PLAN_MODEL,
    ),
    one(
        "layouts beyond the memory are shown",
        "",
        "",
        "",
        "ablations/plan/layouts.py",
        "need * (1 + EDGE) > gpu.memory",
        "need > 2 * gpu.memory",
        PLAN_STUDY,
    ),
    one(
        "the batches of a ramp are not asked whether they divide",
        "BigScience tr11: batches of 16 at 8 TFLOP/s",
        "",
        "",
        "ablations/plan/layouts.py",
        "for size in run.batch_sizes.sizes:",
        "for size in [run.train.batch]:",
        PLAN_STUDY,
    ),
    one(
        "arms of another size are planned without a word",
        'BigScience tr8: "104B" was 58B',
        "",
        "",
        "ablations/plan/study_cost.py",
        "if abs(difference) > APART:",
        "if abs(difference) > 9:",
        PLAN_STUDY,
    ),
    one(
        "a law is fitted to runs of one length",
        "",
        "",
        "",
        "ablations/plan/law_fit.py",
        "        if len(distinct) < 3:",
        "        if len(distinct) < 1:",
        PLAN_LAWS,
    ),
    one(
        "residuals of losses, not of their logarithms",
        "",
        "",
        "",
        "ablations/plan/law_fit.py",
        "        residual = logs - data[:, 2]",
        "        residual = logs - data[:, 2] ** 2",
        PLAN_LAWS,
    ),
    one(
        "oversized heads are accepted",
        "",
        "",
        "",
        "ablations/plan/shapes.py",
        "if head_dim > HEAD_LIMIT else",
        "if head_dim > 999 else",
        PLAN_DECISION,
    ),
    one(
        "a ladder's line is read at the middle of its sizes",
        "",
        "",
        "",
        "ablations/plan/extrapolation.py",
        "statistics.fmean(y) - slope * middle",
        "statistics.fmean(y)",
        PLAN_LADDER,
    ),
    one(
        "a ladder's noise is that of all arms' runs together",
        "",
        "",
        "",
        "ablations/plan/extrapolation.py",
        "residuals / (len(by_arm) * (len(x) - 2))",
        "residuals / (len(by_arm) * (len(x) - 2)) ** 2",
        PLAN_LADDER,
    ),
    one(
        "two GPUs of a node without a switch have all of its links",
        "",
        "",
        "",
        "ablations/plan/hardware.py",
        "return self.link * min(1.0, (ranks - 1) / (self.node - 1))",
        "return self.link",
        PLAN_MODEL,
    ),
    one(
        "a longer budget has no more FLOPs",
        "",
        "",
        "",
        "ablations/plan/resources.py",
        "return self.working * self.seconds * per_gpu",
        'return self.working * TIMES["week"] * per_gpu',
        f"{PLAN_DECISION}::test_the_decision_is_that_of_2022_and_says_what_others_would_be",
    ),
    one(
        "digits of any script are numbers of a budget",
        "",
        "",
        "",
        "ablations/plan/resources.py",
        "if character.isnumeric() and not character.isascii()",
        "if False",
        PLAN_MODEL,
    ),
    one(
        "studies of encoders are advised for a decoder",
        "found here: STUDY=cram_vocab at 1b3, judged by 27 zero-shot tasks",
        "",
        "",
        "ablations/plan/first_studies.py",
        'if arms < 2 or base.get("model.objective") == "mlm" or "train.budget" in base:',
        "if arms < 2:",
        PLAN_DECISION,
    ),
    one(
        "more tokens are planned than there is time for",
        "found here: 9.6 weeks of 8",
        "",
        "",
        "ablations/plan/decision.py",
        "self.tokens_in_time(candidate)[0] * time)",
        "math.inf)",
        PLAN_DECISION,
    ),
    one(
        "an interval's coverage is that of the rows that made it",
        "",
        "",
        "",
        "ablations/plan/calibrate.py",
        "strict=True) if k != key]",
        "strict=True)]",
        PLAN_MODEL,
    ),
    one(
        "GPU-hours are hours of one GPU",
        "",
        "",
        "",
        "ablations/plan/study_cost.py",
        "gpu_hours=hours * gpus,",
        "gpu_hours=hours,",
        PLAN_STUDY,
    ),
    one(
        "heads on a rank need be no multiple of 4",
        "",
        "",
        "",
        "ablations/plan/shapes.py",
        "heads % tp or heads // tp % 4 or",
        "heads % tp or",
        PLAN_DECISION,
    ),
    one(
        "all compute is taken for Kaplan's least",
        "",
        "",
        "",
        "ablations/plan/published_laws.py",
        "least = (compute / (6 * n_at_1 * d_at_1)) ** (1 / (n_power + d_power))",
        "least = compute / PF_DAY",
        PLAN_LAWS,
    ),
    one(
        "weights of a rate that has not fallen are points of a law",
        "",
        "",
        "",
        "ablations/plan/laws.py",
        "if any(math.isclose(share, end, rel_tol=SAME_SHARE) for end in DECAY_ENDS):",
        "if share:",
        PLAN_LAWS,
    ),
    one(
        "points of one run are drawn as if they were independent",
        "",
        "",
        "",
        "ablations/plan/law_fit.py",
        'point.run or f"point {i}"',
        'f"point {i}"',
        PLAN_LAWS,
    ),
    one(
        "a sign that no size has shown is decided",
        "",
        "",
        "",
        "ablations/plan/extrapolation.py",
        'return "undecided" if self.sign_unseen else _verdict',
        "return _verdict",
        PLAN_LADDER,
    ),
    one(
        "a ladder trains with one seed before it is refused",
        "",
        "",
        "",
        "ablations/plan/ladder.py",
        "        if len(target.seeds) < LEAST_SEEDS:",
        "        if len(target.seeds) < 1:",
        PLAN_LADDER,
    ),
    one(
        "a rate that falls several times falls at the end alone",
        "",
        "",
        "",
        "ablations/schedule.py",
        "end = next(end for end in DECAY_ENDS if t <= end)",
        "end = 1.0",
        SCHEDULE,
    ),
    # judging
    one(
        "evaluation with dropout on",
        "",
        "",
        "",
        "eval/tasks/scorer.py",
        "self.model, self.window, self.eod = model.eval(), window",
        "self.model, self.window, self.eod = model, window",
        "tests/test_judge.py::test_a_model_is_judged_without_dropout",
    ),
    one(
        "bytes are counted as characters in bits per byte by position",
        "",
        "",
        "",
        "eval/tasks/position.py",
        "size = len(tokenizer.decode(ids[:n]).encode()) - len(tokenizer.decode(ids[:first]).encode())",
        "size = len(tokenizer.decode(ids[:n])) - len(tokenizer.decode(ids[:first]))",
        JUDGED_BYTES,
    ),
    one(
        "bytes are counted as characters in the pieces of held-out text",
        "",
        "",
        "",
        "eval/tasks/probes.py",
        "end = start + len(part.encode())",
        "end = start + len(part)",
        "tests/test_judge.py::test_few_long_documents_are_many_items_of_their_own_clusters",
    ),
    one(
        "held-out loss is the mean of the documents' ratios",
        "",
        "",
        "",
        "eval/judge.py",
        "float(nats.sum() / LN2 / sizes.sum())",
        "float((nats / LN2 / sizes).mean())",
        "tests/test_judge.py::test_standard_errors_that_are_not_known_are_none",
    ),
    one(
        "bytes that the tokenizer does not know are free",
        "",
        "",
        "",
        "eval/tasks/scorer.py",
        "8 * LN2 * self.unknown_bytes",
        "0 * LN2 * self.unknown_bytes",
        "tests/test_judge.py::test_bytes_that_a_tokenizer_does_not_know_are_charged",
    ),
    one(
        "weights are not compared with their hash",
        "",
        "",
        "",
        "eval/weights.py",
        'if done["weights"].get("sha256") != self.sha256:',
        "if False:",
        "tests/test_judge.py::test_one_flipped_bit_in_the_weights_is_not_judged",
    ),
    one(
        "items are not compared with their hash",
        "",
        "",
        "",
        "eval/results.py",
        'return result if hashlib.sha256(samples).hexdigest() == result["samples_sha256"] else None',
        "return result",
        "tests/test_judge.py::test_what_is_damaged_counts_as_not_judged",
    ),
    one(
        "every item is its own cluster",
        "",
        "",
        "",
        "eval/tasks/harness.py",
        'return {"cluster": digest(" ".join(doc[column].split()))}',
        'return {"cluster": digest(json.dumps(doc, default=str))}',
        "tests/test_judge.py::test_items_of_one_passage_are_one_cluster",
    ),
    one(
        "no examples where the definition asks for some",
        "",
        "",
        "",
        "eval/tasks/definitions.py",
        'number = int(config.get("num_fewshot") or 0) if shots is None else shots',
        "number = 0 if shots is None else shots",
        "tests/test_judge.py::test_examples_are_in_the_prompt_as_the_definition_says_or_as_asked",
    ),
    one(
        "SHOTS reaches no evaluation",
        "",
        "",
        "",
        "ablations/cells.py",
        'return options + (["--shots", shots] if shots else [])',
        "return options",
        "tests/test_study_files.py::test_shots_belong_to_what_the_runs_are_asked_and_not_to_what_they_are",
    ),
    one(
        "Ctrl-C is heard by what prepares data too",
        "",
        "",
        "",
        "launch/local.py",
        "preexec_fn=ended_by_us",
        "preexec_fn=None",
        "tests/test_status.py::test_ctrl_c_while_data_is_prepared_is_one_sentence[launch.local]",
    ),
    one(
        "a setting that does nothing is accepted in SET",
        "",
        "",
        "",
        "ablations/study.py",
        "        if all(missing):\n            raise",
        "        if not missing:\n            raise",
        f"{STUDY_FILES}::test_words_that_are_no_study_are_refused",
    ),
    one(
        "plan accepts tasks that there are not",
        "",
        "",
        "",
        "ablations/plan/checks.py",
        "if tasks := _tasks(study.glue_options):",
        "if False:",
        f"{STUDY_FILES}::test_plan_refuses_what_ablation_would_refuse",
    ),
    one(
        "runs are ended by a terminal that closes",
        "",
        "",
        "",
        "launch/processes.py",
        "        numbers.append(signal.SIGHUP)",
        "        pass",
        "tests/test_status.py::test_ctrl_c_stops_all_runs_and_a_second_one_at_once",
    ),
    one(
        "a folder's text is read packed and unpacked",
        "",
        "",
        "",
        "data/sources.py",
        "        if len(several) > 1:",
        "        if len(several) > 2:",
        "tests/test_data_identity.py::test_a_file_that_is_there_packed_too_is_read_once",
    ),
    one(
        "a tokenizer that puts a space before a text counts as lossless",
        "",
        "",
        "",
        "data/byte_bpe.py",
        "not greedy and not spaced",
        "not greedy",
        "tests/test_tokenizer.py::test_other_ways_to_split_text_are_those_of_hugging_face",
    ),
    # export
    one(
        "EXPORT=1 asks nothing before training",
        "",
        "",
        "",
        "launch/local.py",
        'if study.exports and not _succeeds("-m", "eval.exportable", *study.words):',
        "if False:",
        "tests/test_export_study.py::test_what_cannot_be_exported_is_refused_before_any_work_with_each_arm_and_why",
    ),
    one(
        "an export of other weights counts as that of the run",
        "",
        "",
        "",
        "ablations/rundir.py",
        'return bool(config["trained_by"]["weights"] == summary["weights"]["sha256"])',
        "return True",
        "tests/test_export_study.py::test_in_the_run_directory_an_export_of_earlier_weights_is_replaced_and_nothing_else",
    ),
    one(
        "a folder in a run directory is replaced by its export, whatever it is",
        "",
        "",
        "",
        "eval/export.py",
        'origin.get("fingerprint") == run["fingerprint"]',
        "True",
        "tests/test_export_study.py::test_in_the_run_directory_an_export_of_earlier_weights_is_replaced_and_nothing_else",
    ),
    # fine-tuning
    one(
        "an exported encoder has GELU by erf",
        "",
        "",
        "",
        "model/hub_encoders.py",
        '"hidden_act": "gelu_new",',
        '"hidden_act": "gelu",',
        "tests/test_hub.py::test_what_is_written_computes_the_same_and_comes_back",
    ),
    one(
        "an exported WordPiece joins texts without [CLS]",
        "",
        "",
        "",
        "eval/export.py",
        'single=f"{cls} $A {sep}",',
        'single=f"$A {sep}",',
        "tests/test_export_encoder.py::test_texts_and_pairs_are_joined_as_in_fine_tuning",
    ),
    one(
        "processes of fine-tuning outlive their parent",
        "",
        "",
        "",
        "eval/finetune/work.py",
        "ctypes.CDLL(None).prctl(1, signal.SIGKILL)",
        "ctypes.CDLL(None)",
        "tests/test_finetune.py::test_killed_it_continues_and_nothing_is_lost",
    ),
    one(
        "GLUE results of inputs that were made otherwise count as current",
        "",
        "",
        "",
        "launch/repair.py",
        'return table.get("inputs_version") == rundir.GLUE_INPUTS_VERSION',
        "return bool(table)",
        "tests/test_finetune.py::test_results_of_inputs_made_otherwise_are_made_again",
    ),
    one(
        "an external checkpoint is shown beside runs that were fine-tuned otherwise",
        "",
        "",
        "",
        "eval/report/external.py",
        "if checkpoint.get(name) != other.get(name)]",
        "if False]",
        "tests/test_external.py::test_what_has_to_be_equal",
    ),
    one(
        "fine-tuning drops none of an encoder's attention",
        "",
        "",
        "",
        "model/attention.py",
        "return arranged(position, heads, x_BTD, arrangement, dropout or 0.0)",
        "return arranged(position, heads, x_BTD, arrangement)",
        "tests/test_finetune.py::test_dropout_of_attention_among_padding",
    ),
    one(
        "the last position is pooled, padding or not",
        "",
        "",
        "",
        "eval/finetune/classifier.py",
        "x_BD = x_BTD[torch.arange(len(x_BTD), device=t.device), at_B]",
        "x_BD = x_BTD[:, -1]",
        "tests/test_finetune.py::test_what_each_pooling_reads",
    ),
    one(
        "a task's warm-up is that of another task",
        "Cramming's released fine-tuning",
        "",
        "",
        "eval/finetune/train.py",
        "rising = int(warmup * steps)",
        "rising = 267",
        "tests/test_finetune.py::test_the_schedule_is_the_tasks_own",
    ),
    one(
        "MNLI's labels are permuted",
        "",
        "",
        "",
        "eval/finetune/tasks.py",
        '("entailment", "neutral", "contradiction")',
        '("neutral", "entailment", "contradiction")',
        "tests/test_finetune.py::test_every_format_gives_the_rows_that_were_written",
    ),
    one(
        "of tied classes the first is taken",
        "",
        "",
        "",
        "eval/finetune/metrics.py",
        "best_NC = logits_NC == logits_NC.max(1, keepdims=True)",
        "best_NC = np.arange(logits_NC.shape[1]) == logits_NC.argmax(1)[:, None]",
        "tests/test_finetune.py::test_constant_outputs_score_exactly_chance_and_count_as_collapsed",
    ),
    one(
        "a registration that was rewritten is taken for the first",
        "",
        "",
        "",
        "ablations/rundir.py",
        'row["previous"] == previous',
        "True",
        "tests/test_registration.py::test_lines_that_were_taken_out_of_a_registration_are_noticed",
    ),
    one(
        "a command registers its study before it is refused",
        "",
        "",
        "",
        "launch/local.py",
        "    if todo:\n        prepare(study, todo)\n",
        "    register_finished(study, trained)\n    if todo:\n        prepare(study, todo)\n",
        "tests/test_registration.py::test_a_refused_command_registers_nothing_in_finished_runs",
    ),
    one(
        "a registration replaces the one before it",
        "",
        "",
        "",
        "ablations/registration.py",
        "            if words[0] != words[1]:",
        "            if False:",
        "tests/test_registration.py::test_what_was_changed_is_told_in_words_and_after_how_many_runs",
    ),
    one(
        "an order of which one pair is undecided is called right",
        "",
        "",
        "",
        "eval/report/sections/registered.py",
        "return HELD if all(",
        "return HELD if any(",
        "tests/test_registration.py::test_predictions_hold_fail_or_stay_open_as_a_t_test_says",
    ),
    one(
        "the wrong half of a factorial is run",
        "",
        "",
        "",
        "ablations/factorial.py",
        "% 2 == 0 for generator",
        "% 2 == 1 for generator",
        "tests/test_factorial.py::test_fractions_have_the_resolution_of_the_published_tables",
    ),
    one(
        "the effects of a factorial are a family beside its arms",
        "",
        "",
        "",
        "eval/report/findings.py",
        "    both = family(arms | effects)",
        "    both = family(arms) | family(effects)",
        "tests/test_factorial.py::test_a_report_of_a_factorial_finds_the_interaction_that_is_there",
    ),
    one(
        "a tie where nothing scatters is a verdict",
        "",
        "",
        "",
        "eval/statistics/comparison.py",
        "    if size == 0:  # a tie",
        "    if False:  # a tie",
        "tests/test_statistics.py::test_a_tie_is_no_verdict_even_where_nothing_scatters",
    ),
    one(
        "an item noise that could not be told is none in a plan",
        "",
        "",
        "",
        "eval/report/findings.py",
        "c.items.variance or items_with_seeds(f, arm, name)",
        "c.items.variance",
        "tests/test_report.py::test_items_that_add_nothing_to_the_seeds_are_no_noise_of_zero",
    ),
    one(
        "a copied run is a second seed",
        "",
        "",
        "",
        "eval/report/sections/mismatches.py",
        "        if original[1] != seed:",
        "        if False:",
        "tests/test_cheating.py::test_a_copied_run_is_no_second_seed",
    ),
    one(
        "seeds that were added after a look are not told",
        "",
        "",
        "",
        "eval/report/criteria.py",
        "    return planned if planned > 1 else None",
        "    return None",
        "tests/test_cheating.py::test_seeds_that_were_added_by_hand_after_a_look_are_told",
    ),
    one(
        "a budget is held against the seeds that are there from the start",
        "",
        "",
        "",
        "ablations/plan/command.py",
        "    if hours is not None and answer.most_gpu_hours > hours:",
        "    if hours is not None and answer.gpu_hours > hours:",
        "tests/test_answers.py::test_a_plan_says_what_added_seeds_may_cost_at_most",
    ),
    one(
        "what a parser of options refuses is no JSON",
        "",
        "",
        "",
        "data/answers.py",
        "        if self.as_json:",
        "        if False:",
        "tests/test_answers.py::test_what_a_parser_of_options_refuses_is_an_answer_too",
    ),
    one(
        "a contrast has the noise of one arm",
        "",
        "",
        "",
        "eval/report/contrasts.py",
        "sum(w * w for w in weights.values()) / seeds",
        "max(w * w for w in weights.values()) / seeds",
        "tests/test_factorial.py::test_intervals_cover_and_null_interactions_are_called_in_5_percent_of_studies",
    ),
    one(
        "a learning rate is chosen by the text that judges it",
        "",
        "",
        "",
        "eval/report/tuned.py",
        "[1 - half] if half is not None",
        "[half] if half is not None",
        "tests/test_tuning.py::test_a_choice_uses_neither_the_seed_nor_the_text_that_it_is_judged_by",
    ),
    one(
        "a learning rate is chosen by the run that it judges",
        "",
        "",
        "",
        "eval/report/tuned.py",
        "if s != seed] or [seed]",
        "] or [seed]",
        "tests/test_tuning.py::test_a_choice_uses_neither_the_seed_nor_the_text_that_it_is_judged_by",
    ),
    one(
        "what choosing a learning rate adds to the noise is not counted",
        "",
        "",
        "",
        "eval/report/tuned.py",
        "choice = CHOICE[max(map(len, c.labels.values()))]",
        "choice = 1.0",
        "tests/test_tuning.py::test_the_variance_that_choosing_adds_is_counted",
    ),
    one(
        "an undecided study ends like a decided one",
        "",
        "",
        "",
        "eval/report/outcome.py",
        "int(Exit.UNDECIDED)",
        "int(Exit.FINISHED)",
        "tests/test_answers.py::test_exit_codes_say_whether_a_study_is_decided",
    ),
    one(
        "what was expected after the runs is said to be of before them",
        "",
        "",
        "",
        "eval/report/sections/registered.py",
        "    if before and len(late) <= 1:",
        "    if True:",
        "tests/test_registration.py::test_what_was_expected_is_said_to_be_of_before_the_runs_only_where_it_was",
    ),
    one(
        "seeds are added by a margin that was chosen after the runs",
        "",
        "",
        "",
        "launch/local.py",
        "    if study.criteria.sequential and any(",
        "    if False and any(",
        "tests/test_sequential.py::test_a_margin_that_came_too_late_is_refused_before_a_run_is_begun",
    ),
    one(
        "a margin that was chosen after the runs decides a study",
        "",
        "",
        "",
        "eval/report/outcome.py",
        '"undecided" if arm["exploratory"] else arm["kind"]',
        'arm["kind"]',
        "tests/test_answers.py::test_a_verdict_by_what_was_chosen_after_the_runs_decides_nothing",
    ),
    one(
        "the progress of runs stands before an answer in JSON",
        "",
        "",
        "",
        "launch/local.py",
        "redirect_stdout(sys.stderr)",
        "redirect_stdout(sys.stdout)",
        "tests/test_answers.py::test_an_ablation_answers_as_its_report_does",
    ),
    one(
        "a study's verdict is not the exit code of its command",
        "",
        "",
        "",
        "launch/local.py",
        "    if as_json and not failures:",
        "    if False:",
        "tests/test_answers.py::test_an_ablation_answers_as_its_report_does",
    ),
]
WHERE = f"{MODEL} {TRAIN} {DATA} {OBJECTIVE} {BUDGET} {FP8} {RANKS} {RESUME} {DAMAGE} {BACK} {SEEDED} {MLM} {ENCODER}"
WHERE += f" {RATIO} {PASSAGES} {UNEQUAL} {FEW} {EQUIVALENT} {LEFT_OUT} {OTHER_TEXT}"
WHERE += f" {RECOMPUTED} {STEERED} {PRINTABLE} {FULL_DISK}"
WHERE += f" {DEDUP} {COUNTS} {ORDERS} {IDENTITY} {TOKENIZER}"
WHERE += f" {REPORT}::test_one_held_out_document_gives_no_verdict"
WHERE += f" {REPORT}::test_a_run_that_was_asked_more_is_compared_on_what_both_were_asked"
EVERYTHING = dict.fromkeys(WHERE.split())
CONTROL = Mutation("(nothing broken)", "", "", "", [], " ".join(EVERYTHING))


# ------------------------------------------------------------------------------------------------ the mutant's process


def judge(mutation: Mutation, copy: Path) -> None:
    """Writes what notices the mutant in `copy`: {"proofs": [key, ...], "test": the first that fails, or None}."""
    with open(copy / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # for the processes that tests start
    sys.path[0] = str(copy)
    for name in PACKAGES:  # an editable installation would lead back to the sources that are whole
        found = importlib.import_module(name).__file__
        assert found and Path(found).is_relative_to(copy), f"{name} comes from {found}, not from {copy}"

    import pytest

    settings = dict.fromkeys(m.setting for m in MUTATIONS) if mutation is CONTROL else [mutation.setting]
    proofs = [key for setting in settings for key in unproved(f"{SMALL} {setting}".split())]
    failed: list[str] = []

    class Failures:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                failed.append(report.nodeid)

    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", *mutation.tests.split()]
    code = pytest.main(options, plugins=[Failures()])
    assert code == (pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK), f"pytest: {code!r}"
    (copy / "verdict.json").write_text(json.dumps({"proofs": proofs, "test": failed[0] if failed else None}))


def unproved(words: list[str]) -> list[str]:
    """The keys over which a run so set would be stopped before its first step (launch/manifest.py)."""
    from ablations.config import ConfigError, resolve
    from launch import deepspeed_setup, engine, run_model
    from launch import effective as held
    from model import proof

    try:
        run = resolve([(key, value) for key, _, value in (word.partition("=") for word in words)])
    except ConfigError as error:
        return [str(error).partition(" ")[0]]
    deepspeed_setup.start(run)
    live = engine.build(run_model.model_of(run), run, 1)
    _, groups = proof.parameter_groups(live.model, live.parameter_groups)
    failed = [p.factor for p in [*proof.prove(live.model), groups, *live.proofs] if not p.passed]
    declared = run.flat()
    return failed + [key for key, value in held.effective(live).items() if value != declared[key]]


# ------------------------------------------------------------------------------------------------ outside


def break_a_copy(mutation: Mutation, copy: Path) -> str:
    """Copies the sources and applies the mutation. Returns what is at fault with it (empty: nothing)."""
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for file, old, new in mutation.edits:
        text = (copy / file).read_text()
        if text.count(old) != 1:
            return f"does not apply: {file} has {text.count(old)} times: {old}"
        (copy / file).write_text(text.replace(old, new))
    return ""


def verdict(mutation: Mutation, copy: Path) -> tuple[dict[str, Any], str]:
    """What `judge` wrote, and what is at fault (empty: the mutant was noticed)."""
    output = (copy / "output").read_text()
    if not (copy / "verdict.json").exists():
        return {}, "does not run:\n" + output[-2000:]
    seen = json.loads((copy / "verdict.json").read_text())
    if mutation is CONTROL:
        return seen, "" if seen == {"proofs": [], "test": None} else f"fails, {seen['proofs']}:\n{output[-3000:]}"
    faults = [] if seen["test"] else ["no test notices"]
    if mutation.proof and not any(mutation.proof in key for key in seen["proofs"]):
        faults.append(f"the proof of {mutation.proof} does not notice")
    return seen, " and ".join(faults)


def run(
    mutations: list[Mutation], jobs: int, folder: Path, limit: float = float("inf")
) -> list[tuple[dict[str, Any], str] | None]:
    """Each in a process of its own, forked when everything foreign is imported; what `verdict` says, in order. None of
    those that had not begun after `limit` seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FOREIGN:
            importlib.import_module(name)
    gc.freeze()  # what is shared by all is not searched again in each
    began, done = time.perf_counter(), 0
    results: list[tuple[dict[str, Any], str] | None] = [None] * len(mutations)
    running: dict[Any, tuple[int, Any]] = {}
    todo = list(enumerate(mutations))
    while todo or running:
        if time.perf_counter() - began > limit:
            todo = []
        if todo and len(running) < jobs:
            i, mutation = todo.pop(0)
            copy = folder / str(i)
            fault = break_a_copy(mutation, copy)
            results[i] = {}, fault
            if fault:
                done += 1
                print(f"{mutation.name}: {fault}", file=sys.stderr, flush=True)
            else:
                process = multiprocessing.get_context("fork").Process(target=judge, args=(mutation, copy))
                process.start()
                running[process.sentinel] = i, process
            continue
        for sentinel in multiprocessing.connection.wait(list(running)):
            i, process = running.pop(sentinel)
            process.join()
            result = results[i] = verdict(mutations[i], folder / str(i))
            shutil.rmtree(folder / str(i))
            done += 1
            at = f"{done}/{len(mutations)} {time.perf_counter() - began:.0f} s"
            print(f"{at}  {mutations[i].name}: {result[1] or 'noticed'}", file=sys.stderr, flush=True)
    return results


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutations with one of these in the name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="begin none after so long")
    parser.add_argument("--seed", type=int, help="the order in which they are tried (default: another each day)")
    args = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    sys.dont_write_bytecode = True
    chosen = [m for m in MUTATIONS if not args.words or any(w in m.name for w in args.words)]
    if args.limit < float("inf"):  # so that in some days all have had their turn
        seed = args.seed if args.seed is not None else datetime.date.today().toordinal()
        random.Random(seed).shuffle(chosen)
        print(f"in the order of --seed {seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        control, *tried = run([CONTROL, *chosen], args.jobs, Path(folder), args.limit)
    assert control is not None
    fault = control[1]
    left = [mutation.name for mutation, result in zip(chosen, tried, strict=True) if result is None]
    chosen = [mutation for mutation, result in zip(chosen, tried, strict=True) if result is not None]
    results = [result for result in tried if result is not None]
    print("| mutation | on record | proof | first test |\n|---|---|---|---|")
    for mutation, (seen, _) in zip(chosen, results, strict=True):
        if seen:
            proofs, test = ", ".join(seen["proofs"]) or "–", (seen["test"] or "**none**").replace("tests/", "")
            print(f"| {mutation.name} | {mutation.record or '–'} | {proofs} | {test} |")
    faults = [f"{m.name}: {fault}" for m, (_, fault) in zip(chosen, results, strict=True) if fault]
    faults += [f"{CONTROL.name}: {fault}"] if fault else []
    print("\n" + ("\n".join(faults) if faults else f"{len(chosen)} of {len(chosen)} noticed"))
    if left:
        print(f"no time for {len(left)}: {'; '.join(left)}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
