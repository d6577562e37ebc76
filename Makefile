# One command per chore, on a machine with python3.11 or newer, a C++ compiler and make.
#   make serve    environment, demo model, then the server on port 8000
#   make check    format, types, import contracts, spelling and words
#   make test     environment, demo model, then what shows in minutes that it works on this machine
#   make test-all all of it, as CI does: every family on 1, 2 and 3 ranks, hosts, faults, soak, fuzz, browser
#   make test-kube  the commands of `gangway cluster` on a real Kubernetes API server, built with Go; as root
#   make lock     constraints.txt, which says the version of every package, for a changed pyproject.toml
#   make drill    a server of its own, and a rank of it killed ten times under load
#   make load     load on a running server: statistics, a plot, and whether loadtests/gate.yaml holds
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  := models/smollm2-135m-instruct
CONFIG := configs/local.yaml
DRILL  := --fault kill-rank1
DRILL_PORT := 8765
URL    := http://127.0.0.1:8000
USERS  := 10
DURATION := 60s
TAGS   :=
SHAPE  :=
SEED   := 0
LOAD   :=
GATE   := loadtests/gate.yaml
PYTEST :=
RESULTS := loadtests/results/load
STAMP  := $(VENV)/.complete

.PHONY: serve check test test-rest test-all test-kube drill load lock env model

serve: env model
	exec $(BIN)/gangway serve $(CONFIG)

test: check model
	$(BIN)/pytest -m 'not thorough'

# What `make test` leaves out. make test-rest PYTEST='--deselect …' leaves out something of that.
test-rest: model
	$(BIN)/pytest -m thorough $(PYTEST)

test-all: test test-rest

# Kubernetes is built once, into ~/.cache/gangway. make test-kube PYTEST='-k drain' runs one of them.
test-kube: model
	$(BIN)/python -m tests.kubernetes $(PYTEST)

# float32, so that a text can differ by a fault alone; a port of its own, so that no other server is struck.
# make drill DRILL='--fault stop-rank1' does another fault.
drill: env model
	$(BIN)/gangway serve $(CONFIG) --set model.dtype=float32 --set fault.max_restarts=100 \
	  --set http.port=$(DRILL_PORT) & server=$$!; \
	trap 'kill $$server; wait $$server' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/gangway drill --url http://127.0.0.1:$(DRILL_PORT) --wait 300 $(DRILL)

# make load USERS=20 DURATION=5m TAGS='chat documents' SHAPE=burst; shapes are loadtests/shapes/*.py.
# The search for saturation: make load SHAPE=saturation TAGS=open DURATION=10m LOAD='--step-rate 4 --max-rate 40'
load: env
	mkdir -p $(dir $(RESULTS))
	$(BIN)/python -m locust -f loadtests/locustfile.py$(SHAPE:%=,loadtests/shapes/%.py) --headless --only-summary \
	  --host $(URL) --users $(USERS) --spawn-rate $(USERS) --run-time $(DURATION) --stop-timeout 60 --seed $(SEED) \
	  $(if $(TAGS),--tags $(TAGS)) $(LOAD) --csv $(RESULTS) --csv-full-history --html $(RESULTS).html --exit-code-on-error 0
	$(BIN)/python -m loadtests.plot $(RESULTS)_stats_history.csv $(RESULTS).svg
	$(BIN)/python -m loadtests.gate $(GATE) $(RESULTS)_stats.csv

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/pytest --quiet tests/test_words.py

# Pins what pyproject.toml has come to ask for; make lock LOCK=--upgrade takes the newest of everything. What torch brings
# for CUDA is left out: it differs with torch's build, which pins it itself.
lock: env
	$(BIN)/uv pip compile --quiet pyproject.toml --extra demo --extra dev --python-version 3.11 \
	  --no-header --no-annotate $(LOCK) --output-file constraints.txt
	sed -i -E '/^(cuda-|nvidia-|triton==)/d' constraints.txt

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
