"""The table of mutations: a list for each area of the code. `python -m tests.mutations` tries them."""

from pathlib import Path

from tests.mutations import attention, data, evaluation, model, plans, reports, studies, tensor_parallel, training

ROOT = Path(__file__).resolve().parents[2]
# a small model as in the tests; six heads, since ALiBi treats numbers other than powers of two in a way of its own
SMALL = (
    "train.precision=fp32 train.batch=4 layout.micro_batch=4 "
    "model.layers=2 model.hidden=48 model.heads=6 model.seq=32 model.vocab=120"
)
AREAS = (attention, model, tensor_parallel, training, data, studies, plans, evaluation, reports)
MUTATIONS = [mutation for area in AREAS for mutation in area.MUTATIONS]
