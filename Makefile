# make ablation POS=alibi      compare ALiBi with the baseline: data, training, evaluation, report
# make ablation STUDY=position ON=slurm NODES=4      a study on a Slurm cluster, 4 nodes for each run; SITE=name: launch/sites
# make status STUDY=position WATCH=1                 where every run stands, live; make show, make report: the same words
# make plan STUDY=position ON=a100                   what it costs on that hardware; without ON= on this machine
# make plan BUDGET="18 weeks, 52x8 A100-80, 4 spare" what to train with machines for a time, or another amount
# make ladder POS=alibi SIZES=nano,mini,small        the same arms at several sizes; make laws RUNS=...: a scaling law of runs
# make cram BUDGET=10m SIZE=nano                     the best encoder of a time by the wall clock (default 24h); GLUE=folder
# make glue RUN=run_dir GLUE_DATA=folder             a finished run fine-tuned on GLUE
# make diff A=bigscience-1b3 B=modern-1b3            how two sizes or presets differ
# make card RUN=runs/nano/baseline,seed=1            what a run directory is, as JSON; FORMAT=json after other commands: their answer as JSON
# make noise SIZE=nano         how far runs lie apart that differ in the seed alone, as a file for NOISE_FLOOR=
# make calibrate               docs/statistics.md made anew: how often verdicts err, by simulated studies
# make test                    the tests; make test-slurm: those that need a Slurm of their own (root, Debian packages)
# make eval-data TASKS=suite   task data, on a machine with a network; SHOTS=5: with the data of examples in the prompts
# make export RUN=runs/nano/baseline,seed=1 TO=folder      a finished run as a Hugging Face checkpoint
# make data CORPUS=c4          a corpus prepared ahead: from the hub, or FROM=/path/to/shards
# make docs                    the manual, in build/docs
# make help                    all words of a study. A word that a command does not use is an error.

PYTHON ?= python3
# Files and arguments are UTF-8, whatever the locale.
export PYTHONUTF8 := 1
PY := .venv/bin/python
NAMES := STUDY POS ACT NORM EMBNORM DATA SIZE TOKENS SEEDS SET ARM METRIC MARGIN MORE MAX_SEEDS FIRST_SEED NOISE_FLOOR TASKS SHOTS EVAL_DATA GLUE GLUE_TASKS GLUE_SEEDS EXPORT PREDICT CROSS LR JOBS OUT
# Only what stands on make's command line counts: a DATA or SIZE that happens to be in the environment must not.
said = $(if $(filter command,$(firstword $(origin $(1)))),$($(1)))
pair = '$(1)=$(subst ','\'',$($(1)))'
pairs = $(foreach n,$(1),$(if $(call said,$(n)),$(call pair,$(n))))
WORDS := $(call pairs,$(NAMES))
# Which words each command takes.
TAKES_ablation := $(NAMES) ON NODES SITE FORMAT
TAKES_noise := DATA SIZE TOKENS SEEDS FIRST_SEED SET TASKS SHOTS EVAL_DATA JOBS OUT FORMAT
TAKES_plan := $(NAMES) ON BUDGET FORMAT PRICE TO NEED
TAKES_laws := RUNS FORM TO FORMAT
TAKES_ladder := $(NAMES) SIZES TARGET FORMAT
TAKES_status := $(NAMES) WATCH FORMAT
TAKES_show := $(NAMES) FORMAT
TAKES_card := RUN FORMAT
TAKES_report := $(NAMES) RUNS NOISE BESIDE EXTERNAL FORMAT VERDICT
TAKES_diff := A B FORMAT
TAKES_data := CORPUS FROM TOKENIZER KIND VOCAB WORKERS EXECUTOR OUT SET OPTIONS FORMAT
TAKES_cram := $(NAMES) BUDGET FORMAT
TAKES_glue := RUN GLUE_DATA EVAL_DATA TASKS JOBS FORMAT ARGS
TAKES_export := RUN TO FORMAT
TAKES_eval-data := EVAL_DATA OUT TASKS SHOTS FORMAT ARGS
TAKES_calibrate := FORMAT
TAKES_bench-eval := EVAL_DATA OUT ARGS
$(foreach goal,test test-slurm chaos mutations bench bench-data bench-gpu,$(eval TAKES_$(goal) := ARGS))
GOALS := $(or $(MAKECMDGOALS),ablation)
TAKEN := $(sort $(foreach goal,$(GOALS),$(TAKES_$(goal))))
# ARGS below another make: those of `make test ARGS=...`, whose tests call make
TYPED := $(filter-out PYTHON PY $(if $(filter-out 0,$(MAKELEVEL)),ARGS),$(foreach n,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(n)))),$(n))))
# FORMAT=json: standard output has one JSON object alone (docs/schema), also where make itself refuses
JSON = $(filter json,$(call said,FORMAT))
comma := ,
refuse = $(if $(JSON),$(info {"kind": "error"$(comma) "version": 1$(comma) "error": "$(subst ",\",$(subst \,\\,$(strip $(1))))"}))$(error $(1))
UNUSED := $(filter-out $(TAKEN),$(TYPED))
# What to type in place of a word that another command takes.
INSTEAD_BUDGET = In place of the BUDGET of make cram: SET=train.budget=$(if $(word 2,$(BUDGET)),10m,$(BUDGET))$(comma) and STUDY=cram SEEDS=1 unless other values were given to make cram.
INSTEAD_SIZES = In place of the SIZES of make ladder: SIZE= one of them$(comma) for each is a study of its own.
$(if $(UNUSED),$(call refuse,make $(GOALS) does not use $(UNUSED). $(strip $(foreach n,$(UNUSED),$(INSTEAD_$(n))) It takes $(or $(TAKEN),no words))))
EMPTY := $(strip $(foreach n,$(filter-out ARGS,$(TYPED)),$(if $(strip $($(n))),,$(n)=)))
$(if $(EMPTY),$(call refuse,$(EMPTY) is empty: give a value$(comma) of those that make help names$(comma) or leave it out))
need = $(if $(strip $(call said,$(1))),,$(call refuse,make $@ needs $(1)=$(comma) $(2)))

.PHONY: ablation calibrate noise cram glue data plan laws ladder status report show card diff export test test-slurm chaos check mutations bench bench-data bench-gpu eval-data bench-eval docs loc help clean

option = $(if $(call said,$(1)),--$(shell echo $(1) | tr A-Z a-z) '$($(1))')

# of FORMAT=json: runs tell their progress on standard error
PROGRESS = $(if $(JSON),>&2)
UNFINISHED = {"kind": "error", "version": 1, "error": "not all runs are trained and judged; the reasons stand on standard error"}
OR_STOP = || { code=$$?; $(if $(JSON),echo '$(UNFINISHED)';) exit $$code; }
FORMATS = $(if $(filter-out text json,$(call said,FORMAT)),$(error FORMAT=$(FORMAT) is not one of text, json))
SUBMIT = launch.slurm.submit --nodes '$(or $(call said,NODES),1)' --site '$(call said,SITE)'
ablation: .venv/ready
	@$(PY) -m $(if $(call said,ON),$(if $(filter-out slurm,$(call said,ON)),$(call refuse,ON=$(ON): only slurm$(comma) or nothing),$(SUBMIT)),launch.local) $(call pairs,FORMAT) $(WORDS)
# ON=, BUDGET=: what it costs on hardware, and what a budget trains (ablations/plan/command.py)
plan: .venv/ready
	@$(PY) -m ablations plan $(call pairs,ON BUDGET FORMAT PRICE TO NEED) $(WORDS)
# a scaling law fitted to finished runs: RUNS="runs/a/b,seed=1 ..." FORM=hoffmann|kaplan|compute TO=law.svg
laws: .venv/ready
	@$(call need,RUNS,run directories or folders of them)$(PY) -m ablations.plan.laws $(call said,RUNS) $(if $(call said,FORM),--form '$(FORM)') $(if $(call said,TO),--figure '$(TO)') $(call option,FORMAT)
# the same arms at several sizes, extrapolated to a larger one: POS=alibi,rotary SIZES=nano,mini,small TARGET=14m
LADDER = -m ablations.plan.ladder --sizes '$(call said,SIZES)' --target '$(or $(call said,TARGET),14m)'
ladder: .venv/ready
	@sizes=$$($(PY) $(LADDER) --list $(call pairs,FORMAT) $(WORDS)) || { code=$$?; $(if $(JSON),echo "$$sizes";) exit $$code; }; \
	  for size in $$sizes; do $(PY) -m launch.local $(WORDS) SIZE=$$size $(PROGRESS) $(OR_STOP); done && \
	  $(PY) $(LADDER) $(call pairs,FORMAT) $(WORDS)
# how far runs of the baseline lie apart that differ in the seed alone, a file for NOISE_FLOOR=: SIZE=nano DATA=pydocs
NOISE_WORDS = STUDY=baseline 'SEEDS=$(or $(call said,SEEDS),5)' 'FIRST_SEED=$(or $(call said,FIRST_SEED),1001)' \
  $(call pairs,$(filter-out SEEDS FIRST_SEED FORMAT,$(TAKES_noise)))
noise: .venv/ready
	@$(FORMATS)$(PY) -m eval.report.noise --check $(call pairs,FORMAT) $(NOISE_WORDS) || exit $$?; { $(PY) -m launch.local $(NOISE_WORDS) $(PROGRESS); } $(OR_STOP) && $(PY) -m eval.report.noise $(call pairs,FORMAT) $(NOISE_WORDS)
# the tables of docs/statistics.md: how often verdicts err and what they see, by simulated studies with fixed seeds
calibrate: .venv/ready
	@$(PY) -m tests.calibration.tables $(call option,FORMAT)
status show: .venv/ready
	@$(PY) -m ablations $@ $(if $(filter status,$@),$(if $(call said,WATCH),$(if $(filter 1,$(WATCH)),--watch,$(error WATCH=$(WATCH): 1, or leave it out)))) $(call pairs,FORMAT) $(WORDS)
report: .venv/ready
	@$(PY) -m eval.report $(call pairs,RUNS NOISE BESIDE EXTERNAL FORMAT VERDICT) $(WORDS)
diff: .venv/ready
	@$(PY) -m ablations diff $(call pairs,A B FORMAT)
# what a run directory is, as JSON: RUN=runs/nano/baseline,seed=1
card: .venv/ready
	@$(call need,RUN,a run directory)$(PY) -m ablations card $(call pairs,RUN FORMAT)
data: .venv/ready
	@$(call need,CORPUS,a corpus of data/corpora or a folder or glob of text)$(PY) -m data.prepare '$(call said,CORPUS)' $(foreach n,FROM TOKENIZER KIND VOCAB WORKERS EXECUTOR FORMAT,$(call option,$(n))) \
	  --store '$(or $(call said,OUT),runs)/data' $(if $(call said,SET),--set $(SET)) \
	  $(if $(call said,OPTIONS),--options $(OPTIONS))
# the challenge of "Cramming": the best encoder of a day (BUDGET=24h; here BUDGET=10m SIZE=nano). GLUE=folder of its data, GLUE_TASKS=cola,rte;
# STUDY=: another study under the same rules, such as cram_schedule
CLOCK = is no time by the wall clock such as 10m or 24h; machines for a time are a budget of make plan
cram: .venv/ready
	@$(if $(word 2,$(call said,BUDGET)),$(call refuse,BUDGET=$(BUDGET) $(CLOCK)))$(PY) -m launch.local 'STUDY=$(or $(call said,STUDY),cram)' 'SEEDS=$(or $(call said,SEEDS),1)' \
	  'SET=train.budget=$(or $(call said,BUDGET),24h)$(if $(call said,SET), $(SET))' \
	  $(call pairs,FORMAT $(filter-out SEEDS SET STUDY,$(NAMES)))
# a finished run fine-tuned on GLUE: RUN=..., GLUE_DATA=folder of its files (eval/finetune/tasks.py), JOBS=, TASKS=cola,rte or TASKS="cola rte"
glue: .venv/ready
	@$(call need,RUN,the directory of a finished run)$(PY) -m eval.finetune '$(RUN)' --data '$(or $(call said,GLUE_DATA),$(EVAL_DATA))' $(foreach n,TASKS JOBS FORMAT,$(call option,$(n))) $(call said,ARGS)
export: .venv/ready
	@$(call need,RUN,the directory of a finished run)$(call need,TO,a folder that does not exist yet)$(PY) -m eval.export '$(RUN)' --to '$(TO)' $(call option,FORMAT)
help: .venv/ready
	@sed -n '1,/^$$/s/^# //p' Makefile
	@$(PY) -m ablations --help
	@$(PY) -m eval.report --help

test: .venv/ready
	$(PY) -m pytest -q -n 2 --dist worksteal --ignore=tests/slurm $(call said,ARGS)
test-slurm: .venv/ready
	$(PY) -m pytest -q tests/slurm $(call said,ARGS)
chaos: .venv/ready
	$(PY) tests/slurm/chaos.py $(call said,ARGS)
check: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
mutations: .venv/ready
	$(PY) -m tests.mutations $(call said,ARGS)
bench: .venv/ready
	$(PY) tests/bench.py $(call said,ARGS)
bench-data: .venv/ready
	OMP_NUM_THREADS=1 $(PY) tests/bench_data.py $(call said,ARGS)
bench-gpu: .venv/ready
	$(PY) -m tests.bench_gpu $(call said,ARGS)
# on a machine with a network; evaluation itself never uses one
EVAL_DATA := $(or $(call said,OUT),runs)/eval-data
eval-data: .venv/ready
	$(PY) -m eval.tasks.fetch --to '$(EVAL_DATA)' --tasks '$(or $(call said,TASKS),suite)' $(call option,SHOTS) $(call option,FORMAT) $(call said,ARGS)
bench-eval: .venv/ready
	OMP_NUM_THREADS=1 $(PY) tests/bench_eval.py --data '$(EVAL_DATA)' $(call said,ARGS)

# Python compiles what is imported and keeps it, where it may: compiling all packages takes 49 of the 125 CPU seconds of pip (measured)
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) --requirement requirements.txt
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

.venv/docs: docs/requirements.txt .venv/ready
	$(PY) -m pip install --quiet --requirement docs/requirements.txt
	@touch $@
# the manual, as pages in build/docs; a dead link or a page that is nowhere in the contents is an error
docs: .venv/docs
	@$(PY) -m sphinx -W --keep-going -n -q -b html docs build/docs && echo build/docs/index.html

# lines of code by package: a size is a number to watch
loc:
	@git ls-files '*.py' '*.sh' | xargs wc -l | awk '$$2 != "total" { sub("/[^/]*$$", "", $$2); lines[$$2] += $$1; files[$$2]++ } \
	  END { for (room in lines) printf "%-18s %6d lines %4d files\n", room, lines[room], files[room] }' | sort
clean:
	rm -rf runs
