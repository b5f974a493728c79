# Everything a contributor types. `make help` lists it; nothing here needs root.

VENV    ?= .venv
BIN     := $(VENV)/bin
PYTHON  ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ARGS    ?=
PIP     := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUFF_IN := sidecar operator tests benchmarks
# One process per core; a file's tests stay in one, so that they share its servers. ARGS=-n0 for a debugger.
PYTEST  := $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=loadfile
FAST    := --ignore=tests/integration --ignore=tests/cluster

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-cluster check format bench bench-cluster settings-docs crd lock clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## see it work; ARGS=--once checks itself and leaves
	@$(BIN)/openhqm demo $(ARGS)

test: $(VENV)/.installed-dev ## all tests, fast ones first; ARGS="-k name" picks some
	$(PYTEST) $(FAST) $(ARGS)
	$(PYTEST) tests/integration $(ARGS)
	$(BIN)/python -m pytest tests/cluster $(ARGS)

test-fast: $(VENV)/.installed-dev ## the tests that start no long-running processes
	$(PYTEST) $(FAST) $(ARGS)

test-cluster: $(VENV)/.installed-dev ## the tests on real clusters; needs Go the first time, and ten minutes
	$(BIN)/python -m tests.cluster.toolbox
	$(BIN)/python -m pytest tests/cluster $(ARGS)

check: $(VENV)/.installed-dev ## lint, types, import contracts, duplicates
	$(BIN)/ruff check $(RUFF_IN)
	$(BIN)/ruff format --check $(RUFF_IN)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pylint sidecar/openhqm operator/openhqm_operator

format: $(VENV)/.installed-dev ## format the code
	$(BIN)/ruff check --fix $(RUFF_IN)
	$(BIN)/ruff format $(RUFF_IN)

bench: $(VENV)/.installed-dev ## measure the sidecar against references; writes its part of benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-cluster: $(VENV)/.installed-dev ## measure the control plane on real clusters; ARGS=--real takes containers too
	$(BIN)/python -m benchmarks.control_plane $(ARGS)

settings-docs: $(VENV)/.installed ## print docs/settings.md anew
	$(BIN)/openhqm settings --format markdown > docs/settings.md.new
	mv docs/settings.md.new docs/settings.md

crd: $(VENV)/.installed-dev ## write crds/asyncproxies.yaml and the chart's copy anew
	$(BIN)/python -m openhqm_operator.api.crd > crds/asyncproxies.yaml.new
	mv crds/asyncproxies.yaml.new crds/asyncproxies.yaml
	cp crds/asyncproxies.yaml charts/openhqm/files/asyncproxies.yaml

lock: ## pin what a fresh resolution gives today, in constraints.txt
	rm -rf build/lock && mkdir -p build
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --quiet install --upgrade pip
	build/lock/bin/python -m pip --quiet install --group test --group lint -e '.[nats,redis,s3,operator]'
	{ sed -n '/^#/p' constraints.txt; build/lock/bin/python -m pip freeze --exclude-editable; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/lock

clean: ## remove what the targets above made
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# --- environments: made once, made anew when what they hold changes -----------------------------------

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "OpenHQM needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv: on Debian, apt install python3-venv" >&2; exit 1; }
	@$(PIP) install --upgrade 'pip>=25.1'  # the first that knows dependency groups

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing OpenHQM into $(VENV) ..."
	@$(PIP) install --constraint constraints.txt -e '.[redis]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing OpenHQM and its tools into $(VENV) ..."
	@$(PIP) install --constraint constraints.txt --group test --group lint -e '.[nats,redis,s3,operator]'
	@touch $@ $(VENV)/.installed
