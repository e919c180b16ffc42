# make ablation POS=alibi      compare ALiBi with the baseline: data, training, evaluation, report
# make test                    the tests
# make export RUN=runs/nano/baseline,seed=1 TO=folder      a finished run as a Hugging Face checkpoint
# Variables: see `make help`.

PYTHON ?= python3
PY := .venv/bin/python
NAMES := STUDY POS ACT NORM EMBNORM DATA SIZE TOKENS SEEDS SET ARM JOBS OUT
# Only what stands on make's command line counts: a DATA or SIZE that happens to be in the environment must not.
WORDS := $(foreach n,$(NAMES),$(if $(filter command,$(firstword $(origin $(n)))),'$(n)=$($(n))'))

.PHONY: ablation plan status report show export test check mutations bench help clean

ablation: .venv/ready
	@$(PY) -m ablations run $(WORDS)
plan status report show: .venv/ready
	@$(PY) -m ablations $@ $(WORDS)
export: .venv/ready
	@$(PY) -m eval.export '$(RUN)' --to '$(TO)'
help: .venv/ready
	@$(PY) -m ablations --help

test: .venv/ready
	$(PY) -m pytest -q -n 2 $(ARGS)
check: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m mypy
mutations: .venv/ready
	$(PY) tests/mutations.py $(ARGS)
bench: .venv/ready
	$(PY) tests/bench.py $(ARGS)

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf runs
