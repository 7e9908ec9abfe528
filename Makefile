# Everything a newcomer needs: `make demo` (the main job, no root) and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
DEMO_VENV := .venv-demo
TFLITE_VENV := .venv-tflite
FUZZ_VENV := .venv-fuzz
SERVING_VENV := .venv-serving
BENCH_VENV := .venv-bench
PY := $(VENV)/bin/python
# Nothing phones home: ONNX Runtime reads this before its import.
export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo serving-tools test test-only test-tflite test-tuf-conformance test-mutations test-metered test-candidates test-kills test-arm64 coverage check format lock bench bench-delta hil firmware-image image-arm64 clean

help: ## this list
	@grep -hE '^[a-z0-9%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 24

define make_venv
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is wanted, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv --clear $(1) || { echo 'python3-venv is missing: apt install python3-venv' >&2; exit 1; }
	$(1)/bin/python -m pip install --quiet --require-hashes --no-deps -r $(2)
endef
define install_mooring
	$(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
endef

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	$(call make_venv,$(VENV),requirements/dev.txt)
	$(call install_mooring,$(VENV))

$(DEMO_VENV)/.installed: requirements/demo.txt pyproject.toml
	$(call make_venv,$(DEMO_VENV),requirements/demo.txt)
	$(call install_mooring,$(DEMO_VENV))

# Environment B of the runtime contract: the last tflite-runtime (CPython 3.11 only) beside numpy 1.26 and OpenCV 4.11.
$(TFLITE_VENV)/.installed: requirements/tflite.txt
	$(call make_venv,$(TFLITE_VENV),requirements/tflite.txt)
	touch $@

# The other delta tools, and PyTorch and the exporters that make the benchmark's own pairs (about 2 GB with the CPU build of PyTorch).
# a file, which the pattern bench-% below would take for a benchmark
requirements/bench-torch.txt: ;

$(BENCH_VENV)/.installed: requirements/bench.txt requirements/bench-torch.txt
	$(call make_venv,$(BENCH_VENV),requirements/bench.txt)
	$(BENCH_VENV)/bin/python -m pip install --quiet -r requirements/bench-torch.txt
	touch $@

# tritonclient and MLServer: an unmodified client of `mooring-agent serve`, and what it is measured beside.
$(SERVING_VENV)/.installed: requirements/serving.txt
	$(call make_venv,$(SERVING_VENV),requirements/serving.txt)
	touch $@

$(FUZZ_VENV)/.installed: requirements/fuzz.txt
	$(call make_venv,$(FUZZ_VENV),requirements/fuzz.txt)
	touch $@

demo: $(DEMO_VENV)/.installed ## the whole loop on this machine, no root (ONCE=1: run the scenario, verify, exit; VIDEO= MODEL= MANIFEST=, CAMERA=1: yours)
	$(DEMO_VENV)/bin/python -m examples.demo $(if $(ONCE),--once) $(if $(VIDEO),--video $(VIDEO)) $(if $(MODEL),--model $(MODEL)) \
		$(if $(MANIFEST),--manifest $(MANIFEST)) $(if $(CAMERA),--camera)

check: $(VENV)/.installed ## format, lint, types, import floors (no tests)
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.installed ## rewrite files in the house's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test: $(VENV)/.installed ## all tests; installs missing Debian test services when it may, says what it left out when not
	tests/install-services
	if $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && [ "$$(uname -s)" = Linux ]; then \
		$(MAKE) --no-print-directory test-tflite; else echo 'left out: tflite-runtime (it exists for Python 3.11 only)'; fi
	$(MAKE) --no-print-directory test-only

test-tflite: $(TFLITE_VENV)/.installed ## the runtime contract in environment B: tflite-runtime, numpy 1.26, OpenCV 4.11
	$(TFLITE_VENV)/bin/python -m pytest -q -p no:cacheprovider tests/runtime

test-tuf-conformance: $(VENV)/.installed ## the public TUF client suite against our client (MOORING_TEST_TUF_CONFORMANCE=checkout of it)
	tests/run-tuf-conformance $(ARGS)

test-mutations: $(VENV)/.installed ## takes each check of the attack table out, one by one: its tests must fail (minutes)
	$(PY) tests/protocol/trust/mutations.py $(ARGS)

test-metered: $(VENV)/.installed ## a device on a SIM card with real server and agent: holds, is allowed one model, then takes deltas alone
	MOORING_TEST_METERED=1 $(PY) -m pytest -q tests/end_to_end/test_a_metered_device.py $(ARGS)

test-candidates: $(VENV)/.installed ## a release in shadow, in turns and then in place, with real server and agent
	MOORING_TEST_CANDIDATES=1 $(PY) -m pytest -q tests/end_to_end/test_candidates.py $(ARGS)

test-arm64: $(VENV)/.installed ## golden vectors of x86-64 and arm64 compared, in an emulated Debian (root; mmdebstrap, arch-test, qemu-user-static, binfmt-support; 15 min)
	MOORING_TEST_ARM64=1 $(PY) -m pytest -q -s -p no:cacheprovider tests/arm64 $(ARGS)

fuzz-%: $(FUZZ_VENV)/.installed ## atheris on a parser of what others send: metadata, manifest, delta, bundle, serving or sketch (MOORING_FUZZ_SECONDS=600)
	$(FUZZ_VENV)/bin/python -m fuzz.$*

test-kills: $(VENV)/.installed ## 1,000 SIGKILLs in every state of real updates, 200 of the whole agent, every second cut of the crash matrix; prints tables (45 min)
	MOORING_TEST_DOUBLE_CUTS=1 $(PY) -m pytest -q -s -p no:cacheprovider tests/agent/update/test_crashes.py
	MOORING_TEST_KILLS=$(or $(KILLS),1000) $(PY) -m pytest -q -s -p no:cacheprovider tests/end_to_end/test_update_survives_kills.py
	MOORING_TEST_AGENT_KILLS=$(or $(AGENT_KILLS),200) $(PY) -m pytest -q -s -p no:cacheprovider tests/end_to_end/test_agent_survives_kills.py

# Whole files go to the workers in their order: what a module starts (a server, a broker) is started once. Half of the time is waiting.
test-only: $(VENV)/.installed ## the tests, with what this machine has (WORKERS=0: one after the other, here)
	$(PY) -m pytest -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder --durations=25 --durations-min=5 $(ARGS)

coverage: $(VENV)/.installed ## the tests once more, with the lines and branches that they reach: costs two fifths more processor time
	rm -f .coverage .coverage.*
	$(PY) -m pytest --cov --cov-report= $(ARGS)
	$(VENV)/bin/coverage report --skip-covered --sort=cover | tail -n 40

lock: ## make the hash-locked requirements again (needs uv)
	requirements/lock

serving-tools: $(SERVING_VENV)/.installed ## tritonclient and MLServer, for the test of the client and the rows `oip throughput`

bench-delta: $(VENV)/.installed $(BENCH_VENV)/.installed ## deltas beside five other tools; installs them, trains pairs of models (5 min, once), measures (15 min)
	benchmarks/delta_pairs/install-peers
	$(BENCH_VENV)/bin/python -m benchmarks.delta_pairs.make
	$(PY) -m benchmarks.bench_delta

bench-%: $(VENV)/.installed ## one benchmark, e.g. bench-agent; writes benchmarks/results/<name>.json
	$(PY) -m benchmarks.bench_$(subst -,_,$*)

bench: $(VENV)/.installed ## all benchmarks
	for file in benchmarks/bench_*.py; do name=$$(basename $$file .py); $(PY) -m benchmarks.$$name; done

hil: $(VENV)/.installed ## hardware-in-the-loop suite against the local-process board (BOARD=name for another of hil/boards.toml)
	$(PY) -m hil --board $(or $(BOARD),local)

firmware-image: ## the arm64 root file system (needs mmdebstrap, qemu-user-static; minutes)
	firmware-images/build

image-arm64: ## the agent's container for arm64 (needs buildah, mmdebstrap, qemu-user-static; minutes)
	deploy/build-arm64

clean: ## remove environments and build outputs
	rm -rf $(VENV) $(DEMO_VENV) $(TFLITE_VENV) $(BENCH_VENV) $(SERVING_VENV) .tools .demo build .mypy_cache .ruff_cache .pytest_cache
