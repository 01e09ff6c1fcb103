# Every habit of this repository is one target; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
PYTHON := .venv/bin/python
PYTEST_ARGS ?=
KERNEL_TESTS := tests/contract tests/dataplane/test_ovs_group.py tests/dataplane/test_rewrite_and_recover.py tests/dataplane/test_ebpf_hooks.py tests/dataplane/test_auto_before_tcx.py -k "kernel] or bridge] or [bridge or ingress_qdisc or in_front"
FUZZ_SECONDS ?= 20
KEEP ?=
BACKEND ?=
CLUSTER ?=
NETWORK ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## Install everything that the other targets need; they do it themselves as far as they need it
	@scripts/setup all

.PHONY: demo
demo: ## See it work: a tap on real Open vSwitch, in network namespaces of its own (KEEP=1 leaves it running; BACKEND=EBPF or another)
	@scripts/setup demo
	@exec $(PYTHON) -m vtap_lab.demo $(if $(filter-out 0 no,$(KEEP)),--keep) $(if $(BACKEND),--backend=$(BACKEND))

.PHONY: test
test: ## Run the tests, some 17 minutes on two cores (PYTEST_ARGS="-k lab" runs some of them)
	@scripts/setup test
	@$(PYTHON) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile $(PYTEST_ARGS)

.PHONY: test-kernel
test-kernel: ## Run the taps' contract under the distribution's kernel in QEMU, with Open vSwitch's kernel datapath (PYTEST_ARGS)
	@scripts/setup test-kernel
	@$(PYTHON) -m tests.kernel_vm $(PYTHON) -m pytest --timeout=1200 -p no:cacheprovider $(or $(PYTEST_ARGS),$(KERNEL_TESTS))

.PHONY: e2e
e2e: ## Run the whole product on Kubernetes: a kind cluster of its own, or CLUSTER=existing (NETWORK=local|upstream|preinstalled)
	@scripts/setup e2e
	@CLUSTER=$(CLUSTER) NETWORK=$(NETWORK) $(PYTHON) -m tests.e2e

.PHONY: check
check: ## Lint, type-check, compare what is generated with its source, fuzz the collector (FUZZ_SECONDS=20)
	@scripts/setup check
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/check

.PHONY: bench
bench: ## Measure; prints tables and writes JSON under bench/results/
	@scripts/setup bench
	@$(PYTHON) -m bench

.PHONY: clean
clean: ## Remove everything that was built, installed here or left running by the demo and the tests
	@PYTHONPATH=lab python3 -m vtap_lab.clean
	@$(MAKE) -C collector clean
	@rm -rf build agent/vtap_agent/bpf/.cache .venv .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
