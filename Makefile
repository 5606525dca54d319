# make test, make bench: on a machine with Python >= 3.11, make and a C++ compiler, and nothing else.
# With VENV= they use PYTHON as it is and install nothing: make test VENV= PYTHON=python3
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PYTEST_FLAGS ?= -n 2

CXX_SOURCES = $(shell find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
REQUIREMENTS = $(filter-out requirements/cuda.txt, $(wildcard requirements/*.txt))

ifeq ($(strip $(VENV)),)
python = $(PYTHON)
else
python = $(VENV)/bin/python
environment = $(VENV)/.complete
export PATH := $(abspath $(VENV))/bin:$(PATH)
endif

# benchmarks/ and tests/ see the package in place.
export PYTHONPATH = $(CURDIR)

# Without a GPU no kernel of this build is run: one architecture will do. The tests compile the
# kernels for all of them.
ifeq ($(shell command -v nvidia-smi),)
export TORCH_CUDA_ARCH_LIST ?= 9.0
endif

.PHONY: test test-all bench build mutants docs lint format clean

# What it leaves to test-all stands in tests/support/only_in_test_all.py.
test: build
	$(python) -m pytest $(PYTEST_FLAGS) --short

bench: build
	$(python) benchmarks/bench_loss.py --quick

# Without a limit of time: all tests, other schedules of the emulated kernels, the compiled kernels
# of the oldest architecture, long runs of the properties, every barrier removed, every seeded bug.
test-all: build
	$(python) -m pytest $(PYTEST_FLAGS)
	for seed in 1 2 3 4 5; do $(python) -m pytest $(PYTEST_FLAGS) -m emulated --seed $$seed || exit 1; done
	$(python) -m pytest $(PYTEST_FLAGS) -m compiled --sm75
	$(python) -m pytest $(PYTEST_FLAGS) tests/test_properties.py --hypothesis-profile long
	$(python) tests/mutants/barriers.py
	$(python) tests/mutants/run.py

# Shows that the tests notice seeded bugs; takes about half an hour.
mutants: build
	$(python) tests/mutants/run.py

build: $(environment)
	$(python) setup.py build_ext --inplace

# The site of docs/, in build/site; reads the sources alone, so needs no build and no network.
docs: $(environment)
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet

lint: $(environment)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(environment)
	$(python) -m ruff check --fix .
	$(python) -m ruff format .
	clang-format -i $(CXX_SOURCES)

clean:
	rm -rf build dist *.egg-info discloss_cuda/*.so

# The CUDA compiler comes from the machine, or else from packages; it needs no GPU.
$(VENV)/.complete: $(REQUIREMENTS) requirements/cuda.txt
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install '$(TORCH)' $(REQUIREMENTS:%=--requirement %)
	$(python) -m build_tools.nvcc || $(python) -m pip install --requirement requirements/cuda.txt
	touch $@
