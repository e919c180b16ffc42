# make ablation POS=alibi      compare ALiBi with the baseline: data, training, evaluation, report
# make ablation STUDY=position ON=slurm NODES=4      a study on a Slurm cluster, 4 nodes for each run; SITE=name: launch/sites
# make status STUDY=position WATCH=1                 where every run stands, live
# make test                    the tests; make test-slurm: those that need a Slurm of their own (root, Debian packages)
# make eval-data              task data for TASKS=suite, on a machine with a network
# make export RUN=runs/nano/baseline,seed=1 TO=folder      a finished run as a Hugging Face checkpoint
# make data CORPUS=c4          a corpus prepared ahead: from the hub, or FROM=/path/to/shards
# Variables: see `make help`.

PYTHON ?= python3
# Files and arguments are UTF-8, whatever the locale.
export PYTHONUTF8 := 1
PY := .venv/bin/python
NAMES := STUDY POS ACT NORM EMBNORM DATA SIZE TOKENS SEEDS SET ARM METRIC MARGIN MORE MAX_SEEDS FIRST_SEED TASKS EVAL_DATA GLUE GLUE_SEEDS PREDICT JOBS OUT RUNS NOISE
# Only what stands on make's command line counts: a DATA or SIZE that happens to be in the environment must not.
said = $(if $(filter command,$(firstword $(origin $(1)))),$($(1)))
pair = '$(1)=$(subst ','\'',$($(1)))'
WORDS := $(foreach n,$(NAMES),$(if $(call said,$(n)),$(call pair,$(n))))

.PHONY: ablation cram glue data plan laws ladder status report show diff export test test-slurm chaos check mutations bench bench-data bench-gpu eval-data bench-eval loc help clean

option = $(if $(call said,$(1)),--$(shell echo $(1) | tr A-Z a-z) '$($(1))')

SUBMIT = launch.slurm.submit --nodes '$(or $(NODES),1)' --site '$(SITE)'
ablation: .venv/ready
	@$(PY) -m $(if $(ON),$(if $(filter-out slurm,$(ON)),$(error ON=$(ON): only slurm, or nothing),$(SUBMIT)),launch.local) $(WORDS)
# ON=, BUDGET=: what it costs on hardware, and what a budget trains (ablations/plan/command.py)
plan: .venv/ready
	@$(PY) -m ablations plan $(foreach n,ON BUDGET FORMAT PRICE TO NEED,$(if $(call said,$(n)),$(call pair,$(n)))) $(WORDS)
# a scaling law fitted to finished runs: RUNS="runs/a/b,seed=1 ..." FORM=hoffmann|kaplan|compute TO=law.svg
laws: .venv/ready
	@$(PY) -m ablations.plan.laws $(call said,RUNS) $(if $(call said,FORM),--form '$(FORM)') $(if $(call said,TO),--figure '$(TO)')
# the same arms at several sizes, extrapolated to a larger one: POS=alibi,rotary SIZES=nano,mini,small TARGET=14m
LADDER = -m ablations.plan.ladder --sizes '$(call said,SIZES)' --target '$(or $(call said,TARGET),14m)'
ladder: .venv/ready
	@sizes=$$($(PY) $(LADDER) --list $(WORDS)) && for size in $$sizes; do \
	  $(PY) -m launch.local $(WORDS) SIZE=$$size || exit $$?; done && $(PY) $(LADDER) $(WORDS)
status show: .venv/ready
	@$(PY) -m ablations $@ $(if $(WATCH),$(if $(filter status,$@),--watch)) $(WORDS)
report: .venv/ready
	@$(PY) -m eval.report $(foreach n,BESIDE,$(if $(call said,$(n)),'$(n)=$($(n))')) $(WORDS)
diff: .venv/ready
	@$(PY) -m ablations diff 'A=$(A)' 'B=$(B)'
data: .venv/ready
	@$(PY) -m data.prepare '$(call said,CORPUS)' $(foreach n,FROM TOKENIZER KIND VOCAB WORKERS EXECUTOR,$(call option,$(n))) \
	  --store '$(or $(call said,OUT),runs)/data' $(if $(call said,SET),--set $(SET)) \
	  $(if $(call said,OPTIONS),--options $(OPTIONS))
# the challenge of "Cramming": the best encoder of a day (BUDGET=24h; here BUDGET=10m SIZE=nano). GLUE=folder of its data;
# STUDY=: another study under the same rules, such as cram_schedule
REST = $(filter-out SEEDS SET STUDY,$(NAMES))
cram: .venv/ready
	@$(PY) -m launch.local 'STUDY=$(or $(call said,STUDY),cram)' 'SEEDS=$(or $(call said,SEEDS),1)' \
	  'SET=train.budget=$(or $(call said,BUDGET),24h)$(if $(call said,SET), $(SET))' \
	  $(foreach n,$(REST),$(if $(call said,$(n)),$(call pair,$(n))))
# a finished run fine-tuned on GLUE: RUN=..., GLUE_DATA=folder of its files (eval/finetune/tasks.py), JOBS=, TASKS=
glue: .venv/ready
	@$(PY) -m eval.finetune '$(RUN)' --data '$(or $(call said,GLUE_DATA),$(EVAL_DATA))' $(foreach n,TASKS JOBS,$(call option,$(n))) $(ARGS)
export: .venv/ready
	@$(PY) -m eval.export '$(RUN)' --to '$(TO)'
help: .venv/ready
	@$(PY) -m ablations --help
	@$(PY) -m eval.report --help

test: .venv/ready
	$(PY) -m pytest -q -n 2 --ignore=tests/slurm $(ARGS)
test-slurm: .venv/ready
	$(PY) -m pytest -q tests/slurm $(ARGS)
chaos: .venv/ready
	$(PY) tests/slurm/chaos.py $(ARGS)
check: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
mutations: .venv/ready
	$(PY) tests/mutations.py $(ARGS)
bench: .venv/ready
	$(PY) tests/bench.py $(ARGS)
bench-data: .venv/ready
	OMP_NUM_THREADS=1 $(PY) tests/bench_data.py $(ARGS)
bench-gpu: .venv/ready
	$(PY) -m tests.bench_gpu $(ARGS)
# on a machine with a network; evaluation itself never uses one
EVAL_DATA ?= $(or $(OUT),runs)/eval-data
eval-data: .venv/ready
	$(PY) -m eval.tasks.fetch --to '$(EVAL_DATA)' --tasks '$(or $(TASKS),suite)' $(ARGS)
bench-eval: .venv/ready
	OMP_NUM_THREADS=1 $(PY) tests/bench_eval.py --data '$(EVAL_DATA)' $(ARGS)

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

# lines of code by package: a size is a number to watch
loc:
	@git ls-files '*.py' '*.sh' | xargs wc -l | awk '$$2 != "total" { sub("/[^/]*$$", "", $$2); lines[$$2] += $$1; files[$$2]++ } \
	  END { for (room in lines) printf "%-18s %6d lines %4d files\n", room, lines[room], files[room] }' | sort
clean:
	rm -rf runs
