# The project's commands. `make` alone lists them.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test lint

# Passed on to `sandbox run`, as in `make run ARGUMENTS="--port 9000 --workers 2"`.
ARGUMENTS ?=

help: ## lists these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## installs what is missing, builds, and runs everything with an example product until Ctrl-C
	@.ci/prepare services
	cargo build --package api --package worker --package sandbox --bins
	@exec target/debug/sandbox run $(ARGUMENTS)

test: ## the same set-up, then every test, on ports of its own; safe beside a running `make run`
	@.ci/prepare services python nextest
	cargo build --workspace --bins
	cargo nextest run --workspace

lint: ## formatting, clippy, the dependency rules, and the Kubernetes files where kubectl is there
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	@.ci/dependencies
	@if command -v kubectl >/dev/null; then kubectl kustomize k8s/base >/dev/null && echo "k8s/base: builds"; \
	else echo "k8s/base: not checked, kubectl is not here"; fi
