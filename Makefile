# make demo: fine-tune a real classifier on this machine's CPU · make test · make lint · make bench · make images
# Everything is installed in $(VENV), made with $(PYTHON), Python 3.11 or newer: make demo PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= examples/text_classification/config.yaml
PYTEST_ARGS ?=
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Threads that spin while they wait cost more than they gain on a machine with other work to do.
export OMP_WAIT_POLICY := PASSIVE

# Of `make images`; docs/images.md says what they do.
DOCKER ?= docker
PYTHON_IMAGE ?=
COMPILER_IMAGE ?=
DOCKER_BUILD_ARGS ?=
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' tuneport/__init__.py)
REVISION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
DOCKER_BUILD = $(DOCKER) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
  $(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) $(DOCKER_BUILD_ARGS)

.PHONY: demo test lint format golden bench images setup helm clean
.DELETE_ON_ERROR:

demo: $(VENV)/.train
	$(BIN)/python examples/text_classification/fetch.py
	$(BIN)/tuneport run text_classification --config $(CONFIG)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

golden: $(VENV)/.dev
	$(BIN)/python -m tests.rewrite_golden

bench: $(VENV)/.dev
	@missed=0; for script in benchmarks/*.py; do \
	  echo "== $$script"; $(BIN)/python $$script || missed=1; \
	done; exit $$missed

images:
	$(DOCKER_BUILD) -f images/base/Dockerfile -t tuneport-base:$(VERSION) .
	$(DOCKER_BUILD) $(if $(COMPILER_IMAGE),--build-arg COMPILER_IMAGE=$(COMPILER_IMAGE)) \
	  -f Dockerfile.trainer -t tuneport-trainer:$(VERSION) .

setup: $(VENV)/.dev

# For the tests of the chart, where no other is on the PATH.
helm: $(BIN)/helm

$(BIN)/helm: | $(VENV)/.dev
	$(BIN)/python tests/chart/fetch_helm.py $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11. Name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than what it was installed from, so that a second `make` installs nothing.
$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (some minutes the first time) …"
	$(PIP_INSTALL) -e '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (some minutes the first time) …"
	$(PIP_INSTALL) -e '.[train,deepspeed,mlflow-server,kfp,azureml,dev]'
	@touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
