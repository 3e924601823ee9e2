# Thin: every target is one or two commands, and CI calls the same ones.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check serve chaos loadtest bench lock sbom clean

demo: $(VENV)/ready
	$(BIN)/python demo.py

# Tests that need no service run side by side, one a core; those that time one do not.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not system" -n auto --dist worksteal
	$(BIN)/python -m pytest -m system tests/system tests/judges

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not system" -n auto --dist worksteal

serve: $(VENV)/ready
	$(BIN)/segserve serve --store model_store

# Minutes of overload, kills and hostile clients, on the real service; needs nginx.
chaos: $(VENV)/ready
	$(BIN)/python -m pytest -m chaos -s

# A page of it: runs/loadtest/steady.html. Other profiles: loadtest/README.md.
loadtest: $(VENV)/ready
	$(BIN)/python -m loadtest

bench: $(VENV)/ready
	$(BIN)/python -m bench

# uv comes from the lock file, too: pip installs that one entry, uv the rest. Compiled once: with
# PYTHONDONTWRITEBYTECODE, which containers like to set, each process would compile torch anew, for 10 s instead of 4.
$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.lock
	$(BIN)/uv pip install --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(BIN)/uv pip compile pyproject.toml --extra train --extra openvino-export --extra ray --extra dev --generate-hashes --no-emit-index-url --python-version 3.11 --quiet --output-file requirements.lock

# The packages of the image, for scanners; with those of an extra: python -m deploy.sbom FILE openvino.
sbom: $(VENV)/ready
	$(BIN)/python -m deploy.sbom build/sbom.cdx.json

clean:
	rm -rf $(VENV) runs build
