# ASH-Nets on Ray. `make help` lists the targets; each sets up .venv first where the lock has changed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup pretrain tune test chaos bench bench-full lint docs

# Without compiled bytecode every Ray process compiles its imports again: 12 s instead of 4.
unexport PYTHONDONTWRITEBYTECODE
# An environment that happens to be active, and pip's or uv's own target, are not the one that we set up.
unexport VIRTUAL_ENV
unexport UV_PROJECT_ENVIRONMENT

STAMP := .venv/.lock-$(shell sha256sum requirements.lock | cut -c1-12)
BENCH_STAMP := .venv-bench/.lock-$(shell sha256sum requirements-bench.lock 2>/dev/null | cut -c1-12)
# The first of these that is a Python 3.11; empty where none is.
PYTHON = $(shell for name in python3.11 python3 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo "$$name" && break; done)
# The lines of the lock that install uv itself, hashes included.
UV_LOCK = awk '/^[^ ]/ {ours = /^uv==/} ours' requirements.lock

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## install everything into .venv (the other targets do so by themselves)

pretrain: $(STAMP)  ## pre-train the demo on the CPU or GPUs that are here; ARGS="key.sub=value ..."
	.venv/bin/python jobs/pretrain.py $(ARGS)

tune: $(STAMP)  ## search hyperparameters of the demo: 8 trials, two at a time; ARGS="tune.trials=16 ..."
	.venv/bin/python jobs/tune.py $(ARGS)

test: $(STAMP)  ## run the tests; ARGS="-k words" and the like go to pytest
	.venv/bin/python -m pytest tests -m "not chaos and not full" -n 3 --dist loadscope --no-loadscope-reorder $(ARGS)

chaos: $(STAMP)  ## kill workers and drivers of real runs and look at what becomes of them
	.venv/bin/python -m pytest tests -m "$(if $(filter full,$(CHAOS)),chaos or full,chaos and not full)" $(ARGS)

bench: $(STAMP) $(BENCH_STAMP)  ## the feed against other loaders, one short round
	.venv/bin/python -m benchmarks.feed short $(ARGS)

bench-full: $(STAMP) $(BENCH_STAMP)  ## the same at full size, five rounds; a killed one continues
	.venv/bin/python -m benchmarks.feed full $(ARGS)

lint: $(STAMP)  ## ruff, and a strict type check of the public API
	.venv/bin/ruff check .
	.venv/bin/mypy

docs: $(STAMP)  ## write docs/configuration.md and docs/benchmarks.md anew from classes and results
	.venv/bin/python -m docs.generate

# The stamp comes last: an interrupted set-up starts again, and what is there already is kept.
$(STAMP):
	@if [ -z "$(PYTHON)" ]; then echo "error: Python 3.11 is needed (python3.11 or python3 on the PATH)" >&2; exit 2; fi
	@command -v c++ >/dev/null || { echo "error: a C++ compiler is needed (on Debian: apt install g++)" >&2; exit 2; }
	@rm -f .venv/.lock-*
	@if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
		echo "set-up 1/5: create .venv with $(PYTHON)"; \
		$(PYTHON) -m venv --clear .venv || { echo "error: no venv (on Debian: apt install python3.11-venv)" >&2; exit 2; }; \
	fi
	@if ! .venv/bin/uv --version >/dev/null 2>&1; then \
		echo "set-up 2/5: install uv as locked"; \
		$(UV_LOCK) > .venv/uv.lock; \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
			--require-hashes -r .venv/uv.lock; \
	fi
	@echo "set-up 3/5: install the locked packages, about 8 GB, and compile their bytecode"
	.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode requirements.lock
	@echo "set-up 4/5: install this project as an editable package"
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@echo "set-up 5/5: build DeepSpeed's CPU communication op (about a minute, once)"
	.venv/bin/python -m cluster.comm_op
	@touch $@
	@echo "set-up is complete"

# Loaders that cannot share our environment (mosaicml-streaming wants transformers < 5), for the benchmark alone.
$(BENCH_STAMP): $(STAMP)
	@rm -f .venv-bench/.lock-*
	@echo "set-up of the benchmark's peers in .venv-bench"
	.venv/bin/uv venv --quiet --allow-existing --python .venv/bin/python .venv-bench
	.venv/bin/uv pip sync --quiet --python .venv-bench/bin/python --require-hashes requirements-bench.lock
	@touch $@
