# make demo    the whole pipeline at mini scale on a CPU, figures and a listening page at the end
# make test    ruff and the test suite
# make lab     JupyterLab in notebooks/
# make clean   removes .venv and what make wrote; artifacts/ (corpora, checkpoints) stays
# Each creates .venv and installs everything first, once. On Linux the package index serves torch for CUDA (gigabytes);
# a machine without a GPU saves them with: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help install demo test lab clean
.DELETE_ON_ERROR:

PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13; do \
	"$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo "$$candidate" && break; done)
TORCH_INDEX ?=
BIN := .venv/bin
CODE := llasa_core notebooks tests benchmarks

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

install: .venv/installed

.venv/installed: pyproject.toml requirements-judges.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-judges.txt
	touch $@

demo: install
	$(BIN)/llasa run experiments/demo.yaml --force
	@echo "listen: open results/demo/index.html in a browser"

test: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/python -m pytest

lab: install
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf .venv results/demo .pytest_cache .ruff_cache build dist *.egg-info
