# Each target calls a script that can also be called without make.
#
# BUILD=DIR         the build folder (build), which needs up to 2 GB
# QEMU_SUITE=SUITE  take QEMU's source from this suite of Debian (trixie)
# QEMU_SRC=DIR      take a QEMU tree of your own instead; it is only read
# PREFIX=DIR        for install: where to (/usr/local)
# DESTDIR=DIR       for install: put in front of all paths, for packages
# ONLY=PATTERN      for check, coverage and fuzz: only programs that match
# SANITIZE=LIST     for check: address,undefined or, host tools only, thread
# SIGNOFF=PERSON    for patches: sign them off as this 'NAME <EMAIL>'
# AUTHOR=PERSON     for patches: the author, if git does not know who wrote them
# SECONDS=N         for fuzz: time for all fuzzers together (60)
# RUNS=N            for fuzz: inputs for each fuzzer, without a time limit
# MINUTES=N         for soak: how long (1)
# SEED=TEXT         for soak: repeat the steps of this seed
#
# SPDX-License-Identifier: GPL-2.0-or-later

export BUILD ?= build
SECONDS ?= 60
MINUTES ?= 1

# An option of both tests/run and tests/fuzz/run
only = $(if $(ONLY),--only '$(ONLY)')

.PHONY: help setup qemu tools install guest demo check conformance check-asan \
        coverage fuzz soak bench bench-scale checkpatch patches clean distclean

help: ## print this list
	@sed -n 's/^# \([A-Z_]*=.*\)/  \1/p' Makefile
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | \
	    expand -t 22

demo: qemu tools guest ## run two Linux guests and a host program on one link
	@scripts/env guest/demo

ifeq ($(SANITIZE),)
check: qemu tools guest ## run all tests
	@scripts/env tests/run $(only)
else
check: setup
	@scripts/build-tools $(SANITIZE)
	@$(if $(filter-out thread,$(SANITIZE)),qemu/build asan)
	@tests/run --sanitize $(SANITIZE) $(only)
endif

conformance: check ## run all tests, print the results by requirement
	@scripts/env tests/conformance

check-asan: ## the same as check SANITIZE=address,undefined
	@$(MAKE) --no-print-directory check SANITIZE=address,undefined

fuzz: ## fuzz the host tools with libFuzzer
	@scripts/packages fuzz
	@scripts/build-tools fuzz
	@scripts/env tests/fuzz/run --seconds $(SECONDS) $(if $(RUNS),--runs $(RUNS)) \
	    $(only)

soak: qemu tools ## random peers on one link, to see that nothing is lost
	@scripts/env tests/system/soak --minutes $(MINUTES) \
	    $(if $(SEED),--seed '$(SEED)')

coverage: qemu guest ## run all tests, report the lines and branches they reach
	@scripts/build-tools coverage
	@scripts/env --coverage qemu/coverage
	@scripts/env --coverage tests/coverage $(if $(ONLY),'$(ONLY)')

bench: qemu tools guest ## measure interrupts, beside version 1, and memcpy
	@scripts/packages bench
	@scripts/env bench/run

bench-scale: qemu tools ## measure the server with many peers
	@scripts/env bench/scale

checkpatch: qemu ## run QEMU's style checker over all files
	@scripts/env qemu/checkpatch

patches: qemu ## write the patch series for a QEMU tree to build/patches
	@qemu/series

setup: ## install the Debian packages that are missing
	@scripts/packages

qemu: setup ## build QEMU with ivshmem2
	@qemu/build

tools: setup ## build library, server, client and unit tests, without QEMU
	@scripts/build-tools

install: setup ## install the tools below PREFIX, say where QEMU is
	@scripts/install

guest: setup ## fetch a Linux kernel for the guests
	@guest/kernel

clean: ## remove what was built, keep what was downloaded
	rm -rf $(addprefix $(BUILD)/,tools tools.log tools-* logs logs-* fuzz \
	    patches results.tsv coverage.txt bench.json bench.svg \
	    bench-scale.json bench-eventfd guest-bare guest/initramfs* \
	    qemu-*/src qemu-*/src.files qemu-*/build qemu-*/asan \
	    qemu-*/coverage)

distclean: ## remove everything
	rm -rf $(BUILD)
	find . -path ./build -prune -o -name __pycache__ -prune -exec rm -rf {} +
