SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
UV := $(shell command -v uv || echo .tools/bin/uv)
LOCK = $(UV) pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11
DATA ?= ../shared/data
export DOCKER_BUILDKIT ?= 0

.PHONY: help setup setup-dev demo test test-gpu-contract test-kubernetes faults check bench bench-check bench-latency bench-scaling bench-peers \
	train study images image-gpu sbom chart-schema lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s $$'\t'

.tools/bin/uv:
	@echo "setup: uv is not on PATH; installing it into .tools"
	@$(PYTHON) -m venv .tools && .tools/bin/python -m pip install --quiet --disable-pip-version-check uv

UV_IF_MISSING := $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)

$(VENV)/.created: | $(UV_IF_MISSING)
	@$(UV) venv --quiet --allow-existing --python '>=3.11,<3.14' $(VENV) && touch $@

$(VENV)/.demo: requirements/demo.txt $(VENV)/.created
	@echo "setup: serving and demo packages into $(VENV)"
	@$(UV) pip install --quiet --python $(PY) --require-hashes -r requirements/demo.txt && touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.created
	@echo "setup: test and training packages into $(VENV) (torch is large: a minute or two)"
	@$(UV) pip install --quiet --python $(PY) --require-hashes -r requirements/dev.txt && touch $@ $(VENV)/.demo

setup: $(VENV)/.demo  ## .venv with all that the service and the demo need
setup-dev: $(VENV)/.dev  ## .venv with all that training and tests need, too

demo: setup  ## real listings through broker, model, store and back; no Docker, no GPU, no torch
	@$(PY) -m consumer demo

test: setup-dev  ## sets up Docker, broker, store and registry, then runs every test
	@$(PY) -m tests.infrastructure prepare
	@$(PY) -m pytest $(ARGS)

test-gpu-contract: setup-dev  ## what our code asks of TensorRT is in the real modules 10.6, 10.15 and 11.2 (2 GB to download once)
	@TENSORRT_CONTRACT=1 $(PY) -m pytest tests/tensorrt_contract $(ARGS)

check: setup-dev  ## lint, format, types, import rules, known vulnerabilities of what is served
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@UV=$(UV) $(PY) -m tests.audit requirements/service.txt

faults: setup-dev  ## kills, outages and rebalances on real servers; FAULT_ROUNDS=20 for the long form
	@$(PY) -m tests.infrastructure prepare
	@FAULTS=1 $(PY) -m pytest -s tests/faults --timeout=7200 $(ARGS)

test-kubernetes: setup-dev  ## the chart on the cluster that KUBECONFIG names; tests/kubernetes/conftest.py says what else it needs
	@$(PY) -m tests.infrastructure prepare
	@KUBERNETES=1 $(PY) -m pytest -s tests/kubernetes --timeout=900 $(ARGS)

bench: setup-dev  ## the service against the bare model and a bare client loop, as ratios
	@$(PY) -m tests.infrastructure prepare
	@$(PY) -m tests.benchmarks.journey

bench-latency: setup-dev  ## from publish to enriched, p50 and p99 against the load
	@$(PY) -m tests.infrastructure prepare
	@$(PY) -m tests.benchmarks.latency

bench-check: setup-dev  ## fails where a ratio fell behind the committed one
	@$(PY) -m tests.infrastructure prepare
	@$(PY) -m tests.benchmarks.journey --check

bench-scaling: setup-dev  ## how an event's cost grows with batch, partitions, event size and tasks
	@$(PY) -m tests.infrastructure prepare
	@$(PY) -m tests.benchmarks.scaling

bench-peers: setup-dev  ## the service against quixstreams, bytewax, faststream and sentry-arroyo on the same job
	@$(PY) -m tests.infrastructure prepare
	@$(PY) -m tests.benchmarks.peers $(ARGS)

train: setup-dev  ## the bundle that ships, from the data in DATA
	@$(PY) -m model train --data $(DATA)/bookdepository --data $(DATA)/douban-zh --data $(DATA)/goodreads --data $(DATA)/gutenberg --tasks model/books.toml --out runs/books-measured --refit model/bundles/books

study: setup-dev  ## one network for all tasks against one a task, 5 seeds (hours)
	@$(PY) -m model study --data $(DATA)/bookdepository --data $(DATA)/douban-zh --data $(DATA)/goodreads --data $(DATA)/gutenberg --tasks model/books.toml --out model/study.jsonl --scarce department --scarce topics --scarce library_class --scarce genre --share 0.05 --share 0.2 $(ARGS)

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILD = docker build --network=host --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse --short HEAD)

images:  ## the CPU image; PYTHON_IMAGE= names another base
	@$(BUILD) $(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) -f deploy/Dockerfile.cpu -t listing-enricher:cpu -t listing-enricher:$(VERSION)-cpu .

image-gpu:  ## the GPU image; needs NVIDIA's registry and package index
	@$(BUILD) -f deploy/Dockerfile.gpu -t listing-enricher:gpu -t listing-enricher:$(VERSION)-gpu .

sbom: $(UV_IF_MISSING)  ## what is in the CPU image, as CycloneDX, to dist/; IMAGE= names another
	@mkdir -p dist
	@docker run --rm --entrypoint python3 $(or $(IMAGE),listing-enricher:cpu) -c \
	  'from importlib.metadata import distributions as d; print("\n".join(sorted(f"{one.name}=={one.version}" for one in d())))' \
	  | $(UV) tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --of JSON -o dist/$(subst :,-,$(or $(IMAGE),listing-enricher:cpu)).cdx.json -

chart-schema:  ## the service's settings into the chart's values.schema.json
	@$(PY) -m tests.kubernetes.values_schema

lock:  ## renews the locks in requirements/ from pyproject.toml (they name no host)
	@$(LOCK) pyproject.toml --extra traces -o requirements/service.txt
	@$(LOCK) pyproject.toml --extra demo -o requirements/demo.txt
	@$(LOCK) pyproject.toml --extra demo --extra train --extra traces --group dev -o requirements/dev.txt
	@$(LOCK) pyproject.toml --extra gpu --extra traces -o requirements/gpu.txt
	@$(LOCK) tests/benchmarks/peers/requirements.in -o requirements/peers.txt

clean:  ## removes .venv and caches
	@rm -rf $(VENV) .tools .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
