# Two commands for a fresh clone: `make train` and `make test`. Both set up .venv and build what has changed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What builds, tests and checks; the package's own dependencies come with its installation.
TOOLS := "torch>=2.10" torchvision "setuptools>=77" wheel ninja pybind11 numpy scipy pytest pytest-xdist build \
         ruff==0.17.6 mypy==2.4.1 clang-format==23.1.5
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
CXX_FILES := $(shell find csrc python_tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help train test lint format bench cuda-check cuda-sanitize clean

help:
	@echo "make train   train C-EP on the bundled digits and print the test error"
	@echo "make test    run every test"
	@echo "make lint    check formatting, lint and types"
	@echo "make format  apply the formatting"
	@echo "make bench   measure the fused kernels against plain PyTorch"
	@echo "make cuda-check  compile the CUDA kernels for every architecture, if they have changed; check registers, spills, step loops"
	@echo "make cuda-sanitize  run each CUDA kernel under compute-sanitizer; needs a GPU"
	@echo "make clean   remove .venv and everything built"

train: $(VENV)/built
	$(BIN)/ceprop train

# Two workers with half of the tests each; who is done takes from the other. What tests compile is kept in build/.
test: $(VENV)/built
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

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

# Needs nvcc, no GPU; CEPROP_CUDA=0 skips it where there is no nvcc. Commit the tables that it writes with the change of
# the kernels: the next check then has nothing to compile.
cuda-check: $(VENV)/built
	$(BIN)/python benchmarks/cuda_resources.py --if-changed --out benchmarks/results
	$(BIN)/python benchmarks/sass/step_loops.py --if-changed --out benchmarks/results

# Memory that torch does not share out anew, so that a write past its end is seen. API errors are left to torch, which
# asks for what a driver may not have.
cuda-sanitize: $(VENV)/built
	@command -v compute-sanitizer > /dev/null || \
	  { echo "compute-sanitizer is not on PATH: install it, it is part of the CUDA toolkit" >&2; exit 1; }
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('torch sees no CUDA GPU')"
	@for tool in memcheck racecheck synccheck; do \
	  echo "$$tool"; \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	    --report-api-errors no --kernel-name kernel_substring=ceprop \
	    $(BIN)/python -m pytest -q -x python_tests/cuda_device -k "test_every_kernel or test_every_chain_of_convolutions" || exit 1; \
	done

$(VENV)/tools: Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TOOLS)
	@touch $@

# Here the device code is built for this machine's GPUs only, where there is none for the oldest architecture, which
# compiles fastest: all of them take minutes, and `make cuda-check` compiles for them.
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ';')
export TORCH_CUDA_ARCH_LIST ?= $(or $(GPUS),7.5)

# Without isolation: the library is compiled against the torch that it will run with.
$(VENV)/built: $(VENV)/tools $(SOURCES)
	@$(BIN)/python setup.py --version | grep ceprop_cuda  # what pip hides: what will be built
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info ceprop_cuda/*.so
