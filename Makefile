# `make run` and `make test` are the whole manual: they create .venv, install what is missing, and go.
# Arguments go through ARGS:  make run ARGS="--port 9000"    make test ARGS="-k scheduler"

VENV    ?= .venv
PYTHON  ?=
PY      := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime-installed
DEV     := $(VENV)/.dev-installed
# The JavaScript clients that the tests run, and the file that npm writes last; without npm the tests are skipped, and say so.
CLIENTS := tests/clients/node
NODE    := $(if $(shell command -v npm 2>/dev/null),$(CLIENTS)/node_modules/.package-lock.json)
ARGS    ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run bench test test-long node-clients check gpu-check format docs space demo-model clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(RUNTIME)  ## start the app: http://127.0.0.1:8080
	@$(PY) app.py $(ARGS)

bench: $(RUNTIME)  ## measure a running server  (ARGS="http://127.0.0.1:8080 --concurrency 1,8")
	@$(PY) app.py bench $(ARGS)

test: $(DEV) $(NODE)  ## run the tests
	@$(PY) -m pytest $(ARGS)

test-long: $(DEV) $(NODE)  ## run the tests, those of several minutes too
	@$(PY) -m pytest -m "long or not long" --timeout 1800 $(ARGS)

node-clients: $(NODE)  ## install the JavaScript clients that the tests run  (needs npm)
	@test -e $(CLIENTS)/node_modules/.package-lock.json

check: $(DEV)  ## format, lint, types, import contract, generated docs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_architecture.py
	$(PY) tools/reference_docs.py --check

# Installs nothing: machines with a GPU are often bare, and have their own torch.
gpu-check:  ## check and measure GPU execution, within ten minutes  (ARGS="--only parity,graphs" for some of it)
	@$(if $(wildcard $(PY)),$(PY),$(or $(PYTHON),python3)) tools/gpu_check.py $(ARGS)

format: $(DEV)  ## rewrite the code in the house format
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

docs: $(RUNTIME)  ## write docs/reference again from settings, routes and metrics
	@$(PY) tools/reference_docs.py

space: $(RUNTIME)  ## assemble the Hugging Face Space in build/space  (ARGS="--push owner/name" uploads it)
	@$(PY) tools/space.py $(ARGS)

demo-model: $(RUNTIME)  ## train the embedded demo model again
	$(PY) tools/demo_model/train.py $(ARGS)

clean:  ## remove what was built, and the caches; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A stamp newer than its requirements means pip has nothing to do, and is not asked.
$(RUNTIME): requirements.txt | $(PY)
	@echo "Installing the app into $(VENV) (once; some minutes)"
	@$(PY) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(DEV): tests/requirements.txt $(RUNTIME)
	@echo "Installing the test tools into $(VENV) (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

# Without a registry the other tests run all the same.
$(NODE): $(CLIENTS)/package-lock.json
	@echo "Installing JavaScript clients for the tests (once)"
	@(cd $(CLIENTS) && npm ci --silent --ignore-scripts --no-audit --no-fund --fetch-retries 1) && touch $@ || \
	  echo "npm could not install them: their tests will be skipped" >&2

# Every candidate is started, because a version manager leaves names on PATH that do not run.
$(PY):
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); echo "error: '$$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	  fi; \
	done; \
	echo "error: tgi-local needs Python 3.11 or newer, and found none; install it, or: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1
