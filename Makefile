# Two commands for a fresh clone: `make train` and `make test`. Both set up .venv and build what has changed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What builds, tests and checks; the package's own dependencies come with its installation.
TOOLS := "torch>=2.10" torchvision "setuptools>=77" wheel ninja pybind11 numpy pytest build \
         ruff==0.17.6 mypy==2.4.1 clang-format==23.1.5
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
CXX_FILES := $(shell find csrc python_tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help train test lint format bench clean

help:
	@echo "make train   train C-EP on the bundled digits and print the test error"
	@echo "make test    run every test"
	@echo "make lint    check formatting, lint and types"
	@echo "make format  apply the formatting"
	@echo "make bench   measure the fused kernels against plain PyTorch"
	@echo "make clean   remove .venv and everything built"

train: $(VENV)/built
	$(BIN)/ceprop train

test: $(VENV)/built
	$(BIN)/python -m pytest -q

lint: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/built
	$(BIN)/ceprop bench --out benchmarks/results

$(VENV)/tools: Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TOOLS)
	@touch $@

# Here the device code is built for this machine's GPUs only, where there is none for one architecture: all of them take
# minutes, and `make cuda-check` compiles for them.
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ';')
export TORCH_CUDA_ARCH_LIST ?= $(or $(GPUS),9.0)

# Without isolation: the library is compiled against the torch that it will run with.
$(VENV)/built: $(VENV)/tools $(SOURCES)
	@$(BIN)/python setup.py --version | grep ceprop_cuda  # what pip hides: what will be built
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info ceprop_cuda/*.so
