.DEFAULT_GOAL := help
PY := .venv/bin/python
# Containers often set it: each of some thousand programs that the tests start would compile what it imports, 1 s and more.
unexport PYTHONDONTWRITEBYTECODE

help: ## Say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## Install what is missing and build pagegate into .venv
	@.ci/setup

demo: setup ## Two attested peers move a live process's memory; five attacks are refused
	@$(PY) -m pagegate demo $(ARGS)

test: setup ## Everything: linters, C tests under sanitizers, Python tests with coverage
	@.ci/test

lint: setup ## Linters and type checks only
	@.ci/lint

bench: setup ## Compare with openssl, bare gRPC, gRPC over TLS, and the isolated bridge with one in process
	@$(PY) -m pagegate bench $(ARGS)
	@$(PY) -m pagegate bench --isolation $(filter --quick --json --check,$(ARGS))

clean: ## Remove everything that was built
	rm -rf build .venv .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help setup demo test lint bench clean
