# Thin: every target is one or two commands, and CI calls the same ones.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check serve loadtest bench lock clean

demo: $(VENV)/ready
	$(BIN)/python demo.py

test: $(VENV)/ready
	$(BIN)/python -m pytest

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not system"

serve: $(VENV)/ready
	$(BIN)/segserve serve --store model_store

loadtest: $(VENV)/ready
	$(BIN)/python -m loadtest

bench: $(VENV)/ready
	$(BIN)/python -m bench

# uv comes from the lock file, too: pip installs that one entry, uv the rest.
$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.lock
	$(BIN)/uv pip install --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(BIN)/uv pip compile pyproject.toml --extra train --extra dev --generate-hashes --no-emit-index-url --python-version 3.11 --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) runs build
