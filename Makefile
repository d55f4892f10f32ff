# Two commands on a fresh machine: `make train` and `make test`.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin
# What training needs; and with it what the tests and the checks need.
TRAINING := .venv/.training
INSTALLED := .venv/.installed
INTEROP := .venv-interop

.DEFAULT_GOAL := help
.PHONY: help train test test-unit test-install test-interop test-hard test-gates lint format \
	types bench bench-guide bench-guide-gpu bench-loader bench-tuning bench-gpu bench-loop clean

# pyright's wrapper otherwise warns of every newer release than the tested one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

train: $(TRAINING)  ## train a SPEM ResNet on handwritten digits (no download)
	$(BIN)/spem train --config digits

# What one core does at a time stands first, side by side; the tests then use all cores.
test: $(INSTALLED)  ## run everything that CI runs
	$(MAKE) --jobs 3 --output-sync=target lint types test-install $(INTEROP)/.installed
	$(MAKE) test-unit test-interop

# Each test process gets one thread: OpenMP threads of two processes on the same cores spin.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8

test-unit: $(INSTALLED)  ## run the tests of this project alone
	$(PYTEST)

test-install: $(INSTALLED)  ## build the package, install it elsewhere and train one epoch
	OMP_NUM_THREADS=1 $(BIN)/pytest -m install tests/test_install.py

# Not in `make test`; pytest's exit code 5 says that no test has the marker. Which cases of a proof
# a share in per cent makes, tests/proof.py says.
SEED ?= 0
SHARE ?= 0-2
test-hard: $(INSTALLED)  ## run the tests that take minutes, and a share of the proofs (SHARE=0-2)
	SEED=$(SEED) SHARE=$(SHARE) $(PYTEST) -m hard || [ $$? = 5 ]

test-gates: $(INSTALLED) $(INTEROP)/.installed  ## run the thorough tests of every gate
	$(PYTEST) -m gates || [ $$? = 5 ]
	$(PYTEST_INTEROP) -m gates

# torchvision beside a CPU build of torch breaks other packages: these tests have their own
# environment, where every Python declares what is missing (tests/interop/torchvision_schemas.py).
PYTEST_INTEROP := OMP_NUM_THREADS=1 $(INTEROP)/bin/pytest --quiet --override-ini addopts= \
	--override-ini filterwarnings=default --numprocesses auto --maxprocesses 8 tests/interop

test-interop: $(INTEROP)/.installed  ## run the tests on networks of other libraries
	$(PYTEST_INTEROP) -m 'not gates'

lint: $(INSTALLED)  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(INSTALLED)  ## repair what can be repaired of style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(INSTALLED)  ## check types
	$(BIN)/pyright

BENCH := $(BIN)/python -m benchmarks.bench

bench: $(INSTALLED)  ## measure what attention costs on this machine (hours)
	$(BENCH); red=$$?; $(BENCH) --report; exit $$red

BENCH_GPU := $(BENCH) --device cuda --pairs 20 --dtypes '[bfloat16]' --formats '[NHWC]'

bench-gpu: $(INSTALLED)  ## measure the speeds a GPU is to reach
	red=0; \
	$(BENCH_GPU) --only '[training]' --models '[resnet164]' --gates '[spem]' \
		--cases '[ours,today,graph]' || red=1; \
	$(BENCH_GPU) --only '[training,inference]' --models '[imagenet50]' --gates '[spem,se]' \
		--cases '[ours,timm,whole,graph]' || red=1; \
	$(BENCH) --device cuda --pairs 20 --only '[operations,tail]' --gates '[spem]' \
		--cases '[ours]' --no-memory || red=1; \
	$(BENCH) --device cuda --report; exit $$red

GATE_RESULTS := benchmarks/results/gates

bench-guide: $(INSTALLED)  ## time every gate on the CPU and write docs/choosing-a-gate.md
	$(BENCH) --only '[training,inference]' --models '[resnet164]' --batch 16 --formats '[NHWC]' \
		--gates '[all]' --cases '[ours]' --pairs 6 --no-memory --out $(GATE_RESULTS)-cpu.csv; \
	red=$$?; $(BIN)/python -m docs.choosing; exit $$red

bench-guide-gpu: $(INSTALLED)  ## time every gate on a GPU
	$(BENCH) --device cuda --only '[training,inference]' --models '[resnet164]' --batch 128 \
		--dtypes '[float32]' --formats '[NHWC]' --gates '[all]' --cases '[ours]' --pairs 20 \
		--no-memory --out $(GATE_RESULTS)-cuda.csv

bench-loop: $(INSTALLED)  ## time the training loop beside a bare PyTorch loop
	$(BIN)/python benchmarks/training_loop.py

bench-tuning: $(INTEROP)/.installed  ## time fine-tuning beside a bare PyTorch loop
	$(INTEROP)/bin/python benchmarks/finetuning_loop.py

bench-loader: $(INTEROP)/.installed  ## time the streamed loader beside torchvision's
	OMP_NUM_THREADS=1 $(INTEROP)/bin/python benchmarks/loader.py

clean:  ## remove the environment and caches; runs and data stay
	rm -rf .venv .venv-interop .venv-audit .hypothesis .pytest_cache .ruff_cache dist

$(TRAINING): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "spem needs Python 3.11 or newer, found $$($(or $(PYTHON),python3) --version 2>&1);" \
		"name one with: make PYTHON=/path/to/python"; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.[train]'
	@touch $@

$(INSTALLED): $(TRAINING)
	$(BIN)/pip install --constraint constraints.txt --editable '.[train,report,explain,cluster,log,stream,dev]'
	@touch $@

$(INTEROP)/.installed: $(INSTALLED) tests/interop/torchvision_schemas.py
	"$(PYTHON)" -m venv $(INTEROP)
	$(INTEROP)/bin/pip install --quiet --constraint constraints.txt --editable '.[train,report,stream]' \
		pytest pytest-xdist torchvision timm transformers segmentation-models-pytorch \
		ultralytics torchao onnx onnxruntime onnxscript accelerate 'pytorch-lightning>=2.6.4'
	place=$$($(INTEROP)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		&& cp tests/interop/torchvision_schemas.py "$$place" \
		&& echo 'import torchvision_schemas' > "$$place/torchvision_schemas.pth"
	@touch $@
