.DEFAULT_GOAL := help
BIN := .venv/bin

help: ## Say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## Install what is missing and build pagegate into .venv
	@.ci/setup

.PHONY: help setup
