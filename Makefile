# Needs Python 3.11+ and make; everything else is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= $(VENV)-lowest
# The oldest Postgres that is supported; `make oldest OLDEST=16` runs on another one.
OLDEST ?= 14
# Passed on to pytest, the demonstration or the benchmarks.
ARGS ?=
# Worker processes of pytest; each starts a Postgres of its own, and all share one broker of each kind.
WORKERS ?= 2
# A broker for the demonstration: kafka or rabbitmq, which start one here, or its URL; Postgres unless given.
BROKER ?=
# Databases for the demonstration: one, which the services share, or each, one for each of them; each needs a BROKER.
HOMES ?=

# Where Kafka is kept once it was fetched.
export SCOOP_OUTBOX_CACHE ?= $(CURDIR)/.cache

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo servers test quick matrix lowest oldest lint types check bench clean

help: ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)'. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its modules venv and ensurepip are missing." \
	    "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Stamps, so that nothing is installed twice. What a developer has includes what the demonstration needs.
$(VENV)/.installed-dev: pyproject.toml $(wildcard adapters/*/pyproject.toml) $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --editable adapters/kafka --editable adapters/rabbitmq
	@touch $@ $(VENV)/.installed-demo $(VENV)/.installed-demo-kafka $(VENV)/.installed-demo-rabbitmq

$(VENV)/.installed-demo: pyproject.toml $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

venv: $(VENV)/.installed-dev ## Create .venv with everything for development

ADAPTER := $(if $(filter kafka kafka://%,$(BROKER)),kafka)$(if $(filter rabbitmq amqp://% amqps://%,$(BROKER)),rabbitmq)

$(VENV)/.installed-demo-%: adapters/%/pyproject.toml $(VENV)/.installed-demo
	$(BIN)/python -m pip install --quiet --editable 'adapters/$*'
	@touch $@

demo: $(VENV)/.installed-demo $(ADAPTER:%=$(VENV)/.installed-demo-%) ## Run the demonstration (BROKER=kafka, rabbitmq or a URL, HOMES=each, ARGS=...)
	@$(BIN)/scoop-outbox demo $(if $(BROKER),--broker '$(BROKER)') $(if $(HOMES),--homes '$(HOMES)') $(ARGS)

# Tests that find no server say so themselves, and what to install.
servers:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  .ci/install-servers rabbitmq-server pgbouncer || echo "RabbitMQ and PgBouncer could not be installed." >&2; fi

test: $(VENV)/.installed-dev servers ## Run the tests (ARGS="-k name", WORKERS=auto)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

quick: $(VENV)/.installed-dev ## Run the everyday tests: without Kafka, RabbitMQ, crashes and benchmarks
	$(BIN)/python -m pytest -n $(WORKERS) -m "not broker and not benchmark" --ignore tests/crash $(ARGS)

matrix: $(VENV)/.installed-dev servers ## Run all scenarios on all brokers, in all colours, with a home for each saga; long storms
	SCOOP_OUTBOX_MATRIX=1 $(BIN)/python -m pytest -n $(WORKERS) tests/scenarios tests/homes $(ARGS)

# An environment of its own, with the lowest versions that are promised to do.
$(LOWEST)/.installed: pyproject.toml $(wildcard adapters/*/pyproject.toml) .ci/lowest-versions $(VENV)/.created
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest-versions >$(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt \
	  --editable '.[test]' --editable adapters/kafka --editable adapters/rabbitmq
	@touch $@

lowest: $(LOWEST)/.installed ## Run the everyday tests with the lowest versions of all dependencies
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) -m "not broker and not benchmark" --ignore tests/crash --ignore tests/typing $(ARGS)

oldest: $(VENV)/.installed-dev ## Run the everyday tests on the oldest Postgres
	programs="$$($(BIN)/python .ci/postgres $(OLDEST) '$(SCOOP_OUTBOX_CACHE)')" && SCOOP_PG_BIN="$$programs" \
	  $(BIN)/python -m pytest -n $(WORKERS) -m "not broker and not benchmark" --ignore tests/crash $(ARGS)

lint: $(VENV)/.installed-dev ## Check style, formatting and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev ## Check the types
	$(BIN)/mypy

check: lint types ## Check everything that needs no server

bench: $(VENV)/.installed-dev ## Run the benchmarks (ARGS=...)
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove what the other targets have made
	rm -rf $(VENV) $(LOWEST) .cache build dist .coverage htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
