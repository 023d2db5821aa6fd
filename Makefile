# The two commands of the README are `make run` and `make test`. Both install what they need themselves (.ci/install).
# ARGS is passed on: make run ARGS="~/cloud --peers 12", make test ARGS="tests/unit -k tree".

.PHONY: run test test-long bench lint fmt install install-test

BIN := .venv/bin
ARGS ?=

run: install
	@exec $(BIN)/decloud up $(ARGS)

test: lint
	$(BIN)/python -m tests.run "not long" $(ARGS)

test-long: lint
	$(BIN)/python -m tests.run long $(ARGS)

bench: install-test
	$(BIN)/python -m tests.bench $(ARGS)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: install-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install:
	@bash .ci/install run

install-test:
	@bash .ci/install test
