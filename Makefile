# The project's commands. `make` alone lists them.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test lint bench bench-exports bench-ai bench-events chaos

# Passed on to `sandbox run`, as in `make run ARGUMENTS="--port 9000 --workers 2"`.
ARGUMENTS ?=

help: ## lists these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## installs what is missing, builds, and runs everything with an example product until Ctrl-C
	@.ci/prepare services
	cargo build --package api --package worker --package sandbox --bins
	@exec target/debug/sandbox run $(ARGUMENTS)

# Programs and tests in one build, so with one set of features: apart, some twenty crates are built twice, sqlx and ours among them.
test: ## the same set-up, then every test, on ports of its own; safe beside a running `make run`
	@.ci/prepare services python node browser nextest
	cargo build --workspace --bins --tests
	cargo nextest run --workspace
	cargo test --workspace --doc --quiet

lint: ## formatting, clippy, the dependency rules, and the Kubernetes files where kubectl is there
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	@.ci/dependencies
	@if command -v kubectl >/dev/null; then kubectl kustomize k8s/base >/dev/null && echo "k8s/base: builds"; \
	else echo "k8s/base: not checked, kubectl is not here"; fi

# CHAOS_SEED=… repeats a run's faults; CHAOS_ONLY=kills runs one scenario. Figures: docs/chaos.md.
chaos: ## kills, outages and misbehaving jobs at full size, half an hour and more, one after the other (SOAK_MINUTES=30, CHAOS_ONLY=redis, CHAOS_SEED=…)
	@.ci/prepare services nextest
	cargo build --release --package api --package worker --package acceptance --bins
	CHAOS=full cargo nextest run --release --package acceptance --test chaos --profile chaos --test-threads 1 --no-capture $(CHAOS_ONLY)
	@cat target/chaos/full/*.md

# Only a run of the full size replaces the report in the repository.
BENCH_SETTINGS := $(BENCH_JOBS)$(BENCH_SECONDS)$(BENCH_ROUNDS)$(BENCH_ONLY)$(BENCH_PEERS)$(BENCH_FINISHED)
BENCH_RESULTS ?= $(if $(BENCH_SETTINGS),target/bench-results.md,bench/RESULTS.md)

bench: ## ours beside the peers, half an hour on a calm machine (BENCH_JOBS=500 BENCH_SECONDS=2 BENCH_ROUNDS=1 BENCH_FINISHED=5000: a quick look)
	@.ci/prepare services
	cargo build --release --package api --package worker --package bench --bins
	@bench/peers/install
	target/release/bench --date "$$(date -u +%F)" --results $(BENCH_RESULTS)

# Only a run of the full size replaces the report in the repository.
EXPORT_RESULTS ?= $(if $(BENCH_EXPORT_ROWS)$(BENCH_ROUNDS),target/bench-exports.md,bench/EXPORTS.md)

bench-exports: ## large exports beside `psql \copy`: rates and memory (BENCH_EXPORT_ROWS=100000: a quick look)
	@.ci/prepare services
	cargo build --release --package api --package worker --package bench --bins
	target/release/bench --date "$$(date -u +%F)" --exports $(or $(BENCH_EXPORT_ROWS),10000000) --results $(EXPORT_RESULTS)

# Only a run of the full size replaces the report in the repository.
AI_RESULTS ?= $(if $(BENCH_AI_SECONDS),target/bench-ai.md,bench/AI.md)

bench-ai: ## what a task for a model takes around the model's own time (BENCH_AI_SECONDS=5: a quick look)
	@.ci/prepare services
	cargo build --release --package api --package worker --package bench --bins
	target/release/bench --date "$$(date -u +%F)" --ai $(or $(BENCH_AI_SECONDS),30) --results $(AI_RESULTS)

# Only a run of the full size replaces the report in the repository.
EVENT_RESULTS ?= $(if $(BENCH_EVENT_SECONDS),target/bench-events.md,bench/EVENTS.md)

bench-events: ## events in, numbers out: rates, freshness, views, beside plain rows and `GROUP BY` (BENCH_EVENT_SECONDS=3: a quick look)
	@.ci/prepare services
	cargo build --release --package api --package worker --package bench --bins
	target/release/bench --date "$$(date -u +%F)" --events $(or $(BENCH_EVENT_SECONDS),60) --results $(EVENT_RESULTS)
