# Everything sets itself up: `make demo` and `make test` need only Python 3.11+ (and npm, or nothing: a wheel brings it).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What is installed: `demo` runs, `test` adds the tests' and the gates' tools to it and takes nothing away.
DEMO   := $(VENV)/.installed-demo
TEST   := $(VENV)/.installed-test
WITH_TOOLS := demo,evaluate,lavit,redis,ray,dev
# Tools of deploy/ and of releases, in an environment of their own.
TOOLS  := .pigeon/tools

SHELL       := bash
.SHELLFLAGS := -o pipefail -c

# $(call install,EXTRAS): of pip's hundreds of lines only those that take time, each as it begins; errors come as they are.
define install
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[$(1)]' | sed -unE \
		-e 's/^ *Downloading ([^ ]+)-([0-9][^-]*)-[^ ]*\.whl \(([0-9.]+ [MG]B)\)$$/  downloading \1 \2, \3/p' \
		-e 's/^Installing collected packages: .*/  unpacking (a minute or two)/p'
endef

.PHONY: help demo test check check-deploy audit release faults gpu engine bench format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(DEMO): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pigeon needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@echo "installing what the demo runs into $(VENV), once: 111 packages of 580 MB in all"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,demo)
	@touch $@

$(TEST): $(DEMO)
	@echo "adding what tests and gates need: 45 more packages, 360 MB"
	$(call install,$(WITH_TOOLS))
	@touch $@

demo: $(DEMO) ## Real clicks through Kafka, Postgres, Triton and S3, a retrain, and a page to look at
	@$(BIN)/pigeon demo

# Two processes with servers of their own: half of the time one of them waits for a broker. Long files first.
test: $(TEST) ## All tests, on real embedded servers
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(TEST) ## Format, lint, types, import contracts, dependencies, contract drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/pigeon events check

$(TOOLS)/.installed: deploy/checks/tools.txt deploy/checks/install.sh
	@bash deploy/checks/install.sh $(TOOLS) $(PYTHON)
	@touch $@

check-deploy: $(TOOLS)/.installed ## Alerts and their tests, images, compose file and chart, each by its own tool
	@bash deploy/checks/check.sh $(TOOLS)

audit: $(TOOLS)/.installed ## Known vulnerabilities of the pinned packages; asks a vulnerability service
	$(TOOLS)/venv/bin/pip-audit --no-deps --disable-pip -r constraints.txt

release: $(TOOLS)/.installed ## Wheel, sdist, chart, image context and SBOM of the committed state, into dist/; pushes nothing
	@bash deploy/checks/release.sh $(TOOLS)

faults: $(TEST) $(TOOLS)/.installed ## Faults of ingest and night in long form: 200 kills at each point on three brokers, 50,000 generated records, 2,000 generated pictures, 200 generated files, 100 hostile requests of each operation; hours
	@FAULT_ROUNDS=$${FAULT_ROUNDS:-200} FUZZ_CASES=$${FUZZ_CASES:-50000} PICTURE_CASES=$${PICTURE_CASES:-2000} FILE_CASES=$${FILE_CASES:-200} \
		$(BIN)/python -m pytest -v -n 4 --dist worksteal tests/unit/test_consumers_decode.py tests/faults/test_consume_*.py \
		tests/faults/test_night_processes.py tests/faults/test_store_faults.py tests/inputs/test_pictures.py tests/inputs/test_files.py
	@SCHEMATHESIS=$(TOOLS)/venv/bin/schemathesis $(BIN)/python -m pytest -v tests/faults/hostile_requests.py

# Not through the environment above: a CUDA machine has its own torch.
gpu: ## Figures of a CUDA machine, in eight minutes (MINUTES=8), written to gpu-results; nothing without one
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.gpu --minutes $${MINUTES:-8}

engine: $(TEST) ## nano's answers on vLLM against ONNX Runtime's, in an environment of vLLM's own (3.4 GB); half an hour, ENGINE="--tasks 4"
	@$(BIN)/python -m tests.engine $(ENGINE)

bench: $(TEST) ## Ratios of things measured in one run on this machine, with their goals; BENCH="--only ROW", BENCH=--full
	@$(BIN)/python -m tests.benchmarks $(BENCH)

format: $(TEST) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment and caches (servers' data in .pigeon stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
