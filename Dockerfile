# megahour for a cluster: the pinned requirements on a CUDA base, with the compiler that Triton and DeepSpeed call.
# The base has the CUDA that the pinned torch on PyPI is built for, 13.0, which needs a driver of the series 580 or later.
# On a node: docker build -t megahour . && docker run --gpus all -v $PWD/runs:/megahour/runs megahour make ablation POS=alibi
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04
# Ubuntu keeps no older versions that could be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential git make python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /megahour
# The requirements first: a changed line of code does not install them again.
COPY requirements.txt pyproject.toml Makefile README.md LICENSE ./
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir --requirement requirements.txt
COPY . .
RUN .venv/bin/pip install --no-cache-dir --no-deps --editable . && touch .venv/ready
CMD ["make", "help"]
