# Every target works on a fresh clone: the first one that needs it makes .venv and installs into it.
# Paths are relative, so that the repository may lie in a folder with spaces in its name.

PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
NATIVE := $(shell find native -path native/cuda -prune -o -type f -print)

SOAK_MINUTES ?= 30

.PHONY: help demo test lint soak native native-cuda native-sanitize wheel clean

help:
	@echo "make demo    train, export, serve and predict on the embedded data set"
	@echo "make test    lint, types, import contract and the whole test suite"
	@echo "make lint    only the checks that run no test"
	@echo "make soak    a server under load, reloads, restarts and hostile requests (SOAK_MINUTES=30)"
	@echo "make native  compile what changed in native/ into .venv (make test does it too)"
	@echo "make native-cuda  compile the operators for ONNX Runtime's CUDA provider (needs nvcc)"
	@echo "make native-sanitize   the tests of native/ under the sanitizers"
	@echo "make wheel   build the wheel into dist/"
	@echo "make clean   remove .venv and everything that was built"

.venv/ready-%: pyproject.toml constraints.txt scripts/setup
	@PYTHON='$(PYTHON)' scripts/setup $*

# What pip builds, setup marks as built; later changes of the sources are compiled in place.
# (Where dev is not installed, there is no CMake for that: then pip installs again.)
.venv/ready-train: $(NATIVE)
.venv/native: $(NATIVE) scripts/build-native | .venv/ready-dev
	@scripts/build-native update
	@touch .venv/native .venv/ready-train

native: .venv/ready-dev
	@scripts/build-native
	@touch .venv/native .venv/ready-train

native-cuda: .venv/ready-dev
	@scripts/build-native-cuda

native-sanitize: .venv/ready-dev
	@scripts/build-native sanitize

demo: .venv/ready-train
	@$(VENV_PYTHON) scripts/demo

lint: .venv/ready-dev
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m mypy
	@.venv/bin/lint-imports
	@.venv/bin/hadolint Dockerfile

# A file of tests is one process's; each process keeps to one core, since torch's threads spin while they wait.
test: lint .venv/native
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

soak: .venv/native
	@$(VENV_PYTHON) -m benchmarks.soak --minutes $(SOAK_MINUTES)

wheel: .venv/ready-dev
	@$(VENV_PYTHON) -m build --wheel --outdir dist .

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
