# megahour for a cluster: the pinned requirements on a CUDA base, with the compiler that Triton and DeepSpeed call.
# On a node: docker build -t megahour . && docker run --gpus all -v $PWD/runs:/megahour/runs megahour make ablation POS=alibi
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04
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
