# SPDX-License-Identifier: Apache-2.0
# A thin front for people and CI: every command installs from Debian what it misses, builds, and does its job.
# Everything else is Meson: see HACKING.md.

# Debian's own python3 and meson, whatever else comes first in PATH.
export PATH := /usr/sbin:/usr/bin:/sbin:/bin:$(PATH)
BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
MINUTES ?= 10

.PHONY: all deps build run demo-pr check install fuzz clean

all: build

deps:
	@tools/deps.sh build run check

$(BUILD)/build.ninja:
	@tools/deps.sh build
	@meson setup --prefix=$(PREFIX) $(BUILD)

build: $(BUILD)/build.ninja
	@ninja -C $(BUILD)

run: $(BUILD)/build.ninja
	@tools/deps.sh build run
	@ninja -C $(BUILD)
	@python3 tools/demo.py $(BUILD)

demo-pr: $(BUILD)/build.ninja
	@tools/deps.sh build demo-pr
	@ninja -C $(BUILD) src/pr-helper/granary-pr-helper src/pr-tool/granary-pr
	@python3 tools/demo-pr.py $(BUILD)

check:
	@tools/deps.sh build run check
	@python3 tools/check.py $(BUILD)

install: build
	@meson configure -Dprefix=$(PREFIX) $(BUILD)
	@ninja -C $(BUILD)
	@DESTDIR=$(DESTDIR) meson install -C $(BUILD) --no-rebuild

fuzz:
	@tools/deps.sh build check
	@python3 tools/fuzz.py $(BUILD)-fuzz --seconds $$(($(MINUTES) * 60))

clean:
	@rm -rf $(BUILD) $(BUILD)-sanitize $(BUILD)-threads $(BUILD)-fuzz
