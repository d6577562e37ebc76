# One command per chore, on a machine with python3.11 or newer, a C++ compiler and make.
#   make serve    environment, demo model, then the server on port 8000
#   make test     environment, demo model, then every check that CI runs
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  := models/smollm2-135m-instruct
CONFIG := configs/local.yaml
STAMP  := $(VENV)/.complete

.PHONY: serve test lint env model

serve: env model
	exec $(BIN)/gangway serve $(CONFIG)

test: lint model
	$(BIN)/pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

env: $(STAMP)

model: env
	$(BIN)/gangway demo-model $(MODEL)

# torch comes first and alone: with its version fixed, pip takes the CPU build where one is offered.
# DS_BUILD_OPS=0 leaves DeepSpeed's kernels to be compiled when they are first used.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0 -c constraints.txt
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet -e '.[demo,dev]' -c constraints.txt
	touch $@
