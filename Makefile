# Everything sets itself up: `make demo` and `make test` need only Python 3.11+ (and npm, or nothing: a wheel brings it).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help demo test check faults bench format clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pigeon needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,demo,evaluate,lavit,redis,dev]'
	@touch $@

demo: $(STAMP) ## Real clicks through Kafka, Postgres, Triton and S3, a retrain, and a page to look at
	@$(BIN)/pigeon demo

# Two processes with servers of their own: half of the time one of them waits for a broker. Long files first.
test: $(STAMP) ## All tests, on real embedded servers
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## Format, lint, types, import contracts, dependencies, contract drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/pigeon events check

faults: $(STAMP) ## The ingest's faults in long form: 200 kills at each point on both brokers, 50,000 generated records; hours
	@FAULT_ROUNDS=$${FAULT_ROUNDS:-200} FUZZ_CASES=$${FUZZ_CASES:-50000} \
		$(BIN)/python -m pytest -v -n 4 --dist worksteal tests/unit/test_consumers_decode.py tests/faults/test_consume_*.py

bench: $(STAMP) ## Ratios of things measured in one run on this machine
	@$(BIN)/python -m tests.benchmarks

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment and caches (servers' data in .pigeon stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
