# make ablation POS=alibi      compare ALiBi with the baseline: data, training, evaluation, report
# make test                    the tests
# Variables: see `make help`.

PYTHON ?= python3
PY := .venv/bin/python
NAMES := STUDY POS ACT NORM EMBNORM DATA SIZE TOKENS SEEDS SET ARM JOBS OUT
# Only what stands on make's command line counts: a DATA or SIZE that happens to be in the environment must not.
WORDS := $(foreach n,$(NAMES),$(if $(filter command,$(firstword $(origin $(n)))),'$(n)=$($(n))'))

.PHONY: ablation plan status report show test check bench help clean

ablation: .venv/ready
	@$(PY) -m ablations run $(WORDS)
plan status report show: .venv/ready
	@$(PY) -m ablations $@ $(WORDS)
help: .venv/ready
	@$(PY) -m ablations --help

test: .venv/ready
	$(PY) -m pytest -q -n 2 $(ARGS)
check: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m mypy
bench: .venv/ready
	$(PY) tests/bench.py $(ARGS)

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf runs
