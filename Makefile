SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench soak mutants up down clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with the pinned, tested set of packages

$(READY): pyproject.toml constraints.txt models.txt
	@bash scripts/setup.sh $(PYTHON) $(VENV)
	@touch $@

demo: $(READY) ## the main job on real photos, models and a local cluster
	@$(BIN)/python -m headrace.demo

test: $(READY) ## all tests but the soak tests
	@$(BIN)/python -m pytest

lint: $(READY) ## style, types and import layers
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/python scripts/sync_client.py --check && $(BIN)/mypy \
	  && $(BIN)/lint-imports

format: $(READY) ## rewrite to the house style
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/python scripts/sync_client.py

bench: $(READY) ## every benchmark, each against a named peer
	@$(BIN)/python -m benchmarks

soak: $(READY) ## long-running tests
	@$(BIN)/python -m pytest -m soak --timeout 7200

mutants: $(READY) ## break the guards of the durability core one by one: do the tests notice?
	@$(BIN)/python -m tests.mutations.run

up: $(READY) ## start the local cluster with configs/dev.yaml and keep it
	@$(BIN)/headrace up

down: ## stop what `make up` started
	@if [ -x $(BIN)/headrace ]; then $(BIN)/headrace down; fi

clean: ## remove .venv and the local state
	rm -rf $(VENV) .headrace
