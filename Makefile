# make demo: fine-tune a real classifier on this machine's CPU · make test · make lint · make bench · make images
# Everything is installed in $(VENV), made with $(PYTHON), Python 3.11 or newer: make demo PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= examples/text_classification/config.yaml
PYTEST_ARGS ?=
BIN := $(VENV)/bin
PIP_INSTALL ?= $(BIN)/python -m pip install --quiet --disable-pip-version-check
EVERYTHING := .[train,deepspeed,benchmark,onnx,mlflow-server,kfp,azureml,dev]

# Threads that spin while they wait cost more than they gain on a machine with other work to do.
export OMP_WAIT_POLICY := PASSIVE
# What each process would compile again is compiled once, as it is where this is not set.
unexport PYTHONDONTWRITEBYTECODE

# Of `make images`; docs/images.md says what they do.
DOCKER ?= docker
PYTHON_IMAGE ?=
COMPILER_IMAGE ?=
DOCKER_BUILD_ARGS ?=
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' tuneport/__init__.py)
REVISION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
DOCKER_BUILD = $(DOCKER) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
  $(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) $(DOCKER_BUILD_ARGS)

# How much of a room its own quick tests run through at least, in %, branches included: what decides what a run is.
COVERAGE_FLOORS = errors.py:100 labels.py:100 parameters.py:100 config.py:99 step.py:97 graph.py:97 plugins.py:97 \
  artifacts.py:94 stage.py:80 'metrics/*:94' 'encoding/*:91'
COVERAGE_TESTS = tests/metrics tests/encoding tests/test_artifacts.py tests/test_cli.py tests/test_config.py \
  tests/test_errors.py tests/test_every_parameter.py tests/test_graph.py tests/test_plugins.py tests/test_public_names.py \
  tests/test_stage.py tests/test_step.py

.PHONY: demo test test-minimum test-newest lint docs format golden bench peers coverage images image-base image-trainer setup helm dist lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/.train
	$(BIN)/python examples/text_classification/fetch.py
	$(BIN)/tuneport run text_classification --config $(CONFIG)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# With the oldest versions that pyproject.toml allows, or the newest, instead of those of constraints.txt.
VERSIONS_TESTS ?= tests/training tests/evaluation tests/targets tests/export tests/steps

test-minimum: .venv-minimum/.dev
	.venv-minimum/bin/python -m pytest $(PYTEST_ARGS) $(VERSIONS_TESTS)

test-newest: .venv-newest/.dev
	.venv-newest/bin/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site, in site/; any dead link is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

golden: $(VENV)/.dev
	$(BIN)/python -m tests.rewrite_golden

bench: $(VENV)/.dev
	@missed=0; for script in benchmarks/*.py; do \
	  echo "== $$script"; $(BIN)/python $$script || missed=1; \
	done; exit $$missed

# Other trainers, each in an environment of its own, for benchmarks/training_speed.py.
peers: .venv-llama-factory/.peer .venv-trl/.peer

.venv-llama-factory/.peer: PEER = llamafactory==0.9.5
.venv-trl/.peer: PEER = trl==1.16.0
.venv-llama-factory/.peer .venv-trl/.peer: constraints.txt | $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(@D)/bin/python $(PEER) "$$(grep '^torch==' constraints.txt)"
	@touch $@

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest --cov --cov-report= $(PYTEST_ARGS) $(COVERAGE_TESTS)
	@missed=0; for floor in $(COVERAGE_FLOORS); do \
	  $(BIN)/coverage report --include="tuneport/$${floor%:*}" --fail-under="$${floor#*:}" --show-missing || missed=1; \
	done; exit $$missed

# What a release publishes, and of what the images install, the SBOM. TAG=v1.2.3: that it is this version's is checked.
dist: | $(BIN)/python
	@[ -z "$(TAG)" ] || [ "$(TAG)" = "v$(VERSION)" ] || \
	  { echo "error: the tag is $(TAG); expected v$(VERSION), as tuneport/__init__.py has it"; exit 2; }
	@[ -z "$(TAG)" ] || grep -q '^## $(VERSION) ' CHANGELOG.md || \
	  { echo "error: CHANGELOG.md has no section $(VERSION). Run: towncrier build --version $(VERSION)"; exit 2; }
	rm -rf dist
	$(PIP_INSTALL) -c constraints.txt build cyclonedx-bom==7.5.0
	$(BIN)/python -m build --outdir dist .
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.cdx.json \
	  images/requirements-trainer.txt

# What the images install, with the digests of its files: after a change of constraints.txt or of a requirement.
LOCK = UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
  --generate-hashes --no-annotate -c constraints.txt pyproject.toml
STORES = --extra s3 --extra gcs --extra azure
TRAINER = $(STORES) --extra train --extra benchmark --extra onnx --extra trackers --extra launch --extra mlflow-server images/compile.txt

lock: $(VENV)/.dev
	$(LOCK) $(STORES) -o images/requirements-base.txt
	$(LOCK) $(TRAINER) -o images/requirements-trainer.txt
	$(LOCK) $(TRAINER) --extra deepspeed -o images/requirements-deepspeed.txt

images: image-base image-trainer

image-base:
	$(DOCKER_BUILD) -f images/base/Dockerfile -t tuneport-base:$(VERSION) .

image-trainer:
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
	$(PIP_INSTALL) -c constraints.txt -e '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (some minutes the first time) …"
	$(PIP_INSTALL) -c constraints.txt -e '$(EVERYTHING)'
	@touch $@ $(VENV)/.train

.venv-minimum/.dev: RESOLUTION = lowest-direct
.venv-newest/.dev: RESOLUTION = highest
.venv-minimum/.dev .venv-newest/.dev: pyproject.toml | $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(@D)/bin/python --resolution $(RESOLUTION) -e '$(EVERYTHING)'
	@touch $@

clean:
	rm -rf $(VENV) .venv-minimum .venv-newest runs dist .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
