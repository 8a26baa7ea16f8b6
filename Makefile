# The front door. Everything is done by scripts that also work alone.
#
# BUILD=DIR         where everything is built (build)
# QEMU_SUITE=SUITE  take QEMU's source from this suite of Debian (trixie)
# QEMU_SRC=DIR      take a QEMU tree of your own; it is only read
# ONLY=PATTERN      for check and coverage: only the programs that match
#
# SPDX-License-Identifier: GPL-2.0-or-later

export BUILD ?= build

.PHONY: help setup qemu tools guest demo check conformance check-asan coverage \
        bench bench-scale checkpatch patches clean distclean

help:           ## this list
	@sed -n 's/^# \([A-Z_]*=.*\)/  \1/p' Makefile
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | \
	    expand -t 22

demo: qemu tools guest ## two Linux guests and a host program on one link
	@qemu/env guest/demo

check: qemu tools guest ## all tests
	@qemu/env tests/run $(if $(ONLY),--only '$(ONLY)')

conformance: check ## requirement -> test -> result, after a check
	@qemu/env tests/run --conformance

check-asan: setup ## the tests again, under the sanitizers
	@qemu/build asan
	@contrib/build asan
	@qemu/env --asan tests/run --asan

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
	rm -rf $(BUILD)/tools $(BUILD)/tools-* $(BUILD)/logs \
	    $(BUILD)/patches $(BUILD)/qemu-*/build $(BUILD)/qemu-*/asan \
	    $(BUILD)/qemu-*/coverage

distclean: ## remove everything
	rm -rf $(BUILD)
