# The front door. Everything is done by scripts that also work alone.
#
# BUILD=DIR         where everything is built (build)
# QEMU_SUITE=SUITE  take QEMU's source from this suite of Debian (trixie)
# QEMU_SRC=DIR      take a QEMU tree of your own; it is only read
# ONLY=PATTERN      for check, coverage and fuzz: only the programs that match
# SANITIZE=LIST     for check: address,undefined or, host tools only, thread
# SECONDS=N         for fuzz: how long altogether (60)
# RUNS=N            for fuzz: how many inputs for each fuzzer, however long
#
# SPDX-License-Identifier: GPL-2.0-or-later

export BUILD ?= build
SECONDS ?= 60

# What both tests/run and tests/fuzz/run know
only = $(if $(ONLY),--only '$(ONLY)')

.PHONY: help setup qemu tools guest demo check conformance check-asan \
        coverage fuzz bench bench-scale checkpatch patches clean distclean

help:           ## this list
	@sed -n 's/^# \([A-Z_]*=.*\)/  \1/p' Makefile
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | \
	    expand -t 22

demo: qemu tools guest ## two Linux guests and a host program on one link
	@qemu/env guest/demo

ifeq ($(SANITIZE),)
check: qemu tools guest ## all tests
	@qemu/env tests/run $(only)
else
check: setup
	@contrib/build $(SANITIZE)
	@$(if $(filter-out thread,$(SANITIZE)),qemu/build asan)
	@tests/run --sanitize $(SANITIZE) $(only)
endif

conformance: check ## requirement -> test -> result, after a check
	@qemu/env tests/run --conformance

check-asan: ## check with SANITIZE=address,undefined
	@$(MAKE) --no-print-directory check SANITIZE=address,undefined

fuzz: ## fuzz the host tools with libFuzzer
	@qemu/packages fuzz
	@contrib/build fuzz
	@qemu/env tests/fuzz/run --seconds $(SECONDS) $(if $(RUNS),--runs $(RUNS)) \
	    $(only)

coverage: qemu guest ## which lines and branches of our C files the tests reach
	@contrib/build coverage
	@qemu/env --coverage qemu/coverage
	@qemu/env --coverage tests/coverage $(if $(ONLY),'$(ONLY)')

bench: qemu tools ## what doorbells and interrupts cost, beside version 1
	@qemu/packages bench
	@qemu/env bench/run

bench-scale: qemu tools ## how the server copes with many peers
	@qemu/env bench/scale

checkpatch: qemu ## QEMU's style checker over our files
	@qemu/env qemu/checkpatch

patches: qemu ## the patch series for a QEMU tree, in build/patches
	@qemu/series

setup: ## Debian packages that are missing
	@qemu/packages

qemu: setup ## QEMU with ivshmem2
	@qemu/build

tools: setup ## library, server, client and unit tests, without QEMU
	@contrib/build

guest: setup ## a Linux kernel for the guests
	@guest/kernel

clean: ## remove what was built, keep what was downloaded
	rm -rf $(BUILD)/tools $(BUILD)/tools-* $(BUILD)/logs $(BUILD)/logs-* \
	    $(BUILD)/fuzz $(BUILD)/patches $(BUILD)/qemu-*/build \
	    $(BUILD)/qemu-*/asan $(BUILD)/qemu-*/coverage

distclean: ## remove everything
	rm -rf $(BUILD)
