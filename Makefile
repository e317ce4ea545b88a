.DEFAULT_GOAL := help
.PHONY: help run example test test-all check format bench lock clean rabbitmq

PYTHON ?= python3
BIN := .venv/bin
UP_ARGS ?=

help:  ## what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What a team has that stayed with Celery 5.4: the tests start such workers; nothing of ours is imported there.
CELERY54 := 'celery[redis]==5.4.0' 'kombu<5.5'

# The lock names every package with its hash and no address; wheels only, so nothing is compiled here.
# uv comes out of the same lock: it installs in two seconds what takes pip forty.
.venv/installed: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jobplane needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	@awk '/^uv==/ {p = 1} p {print} p && !/\\$$/ {exit}' requirements-dev.txt > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r .venv/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-build -r requirements-dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv-celery54/installed: requirements-celery54.txt .venv/installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-celery54
	$(BIN)/uv pip install --quiet --python .venv-celery54/bin/python --require-hashes --no-build -r requirements-celery54.txt
	@touch $@

rabbitmq:
	@command -v rabbitmq-server >/dev/null || [ -x /usr/sbin/rabbitmq-server ] || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing rabbitmq-server from Debian's packages"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rabbitmq-server >/dev/null; \
	else \
		echo "The tests need RabbitMQ: install the package rabbitmq-server and try again." >&2; exit 1; \
	fi

run: .venv/installed  ## the whole plane on this machine: PostgreSQL, Valkey, API, scheduler, worker
	@exec $(BIN)/jobplane up $(UP_ARGS)

example: .venv/installed  ## two services of a community site and their jobs, beside a whole plane
	@exec $(BIN)/python -m examples.community $(UP_ARGS)

# Four processes on two cores: a good part of the suite waits for real leases and real outages.
test: .venv/installed .venv-celery54/installed rabbitmq  ## the test suite, with every server it needs (under 8 minutes on 2 cores)
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not long"

test-all: .venv/installed .venv-celery54/installed rabbitmq  ## the same and what takes longer
	$(BIN)/python -m pytest -n 4 --dist worksteal

check: .venv/installed  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

format: .venv/installed  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed rabbitmq  ## ourselves and the peers on the same work, in one run
	$(BIN)/python -m benchmarks

lock: .venv/installed  ## write the hashed requirements again
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header -c requirements.txt --extra embedded --group dev pyproject.toml -o requirements-dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header -c requirements-dev.txt --group build -o requirements-build.txt
	printf '%s\n' $(CELERY54) | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header - -o requirements-celery54.txt

clean:  ## remove the environment and caches (never the data folder)
	rm -rf .venv .venv-celery54 .pytest_cache .mypy_cache .ruff_cache .hypothesis
