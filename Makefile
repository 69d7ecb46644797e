# The entry points a person types. Logic lives in the program, in tests/ and in .ci/run.
.DEFAULT_GOAL := help
SHELL := /bin/bash

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
ARGS ?=
# systemd looks for units below /usr/lib and /usr/local/lib alike
UNITS := $(PREFIX)/lib/systemd/system
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# cargo builds as you and runs the tests as root; scripts that call cargo find yours
ROOT_ENV := $(if $(SUDO),sudo -E env "PATH=$$PATH" "HOME=$$HOME")
AS_ROOT := $(if $(SUDO),--config 'target."cfg(all())".runner="sudo -E"')
BIN := $(or $(CARGO_TARGET_DIR),target)/release/peervpn

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools:
	@command -v $(CARGO) >/dev/null || { echo "make: no cargo here; install Rust: https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { command -v apt-get >/dev/null || { echo "make: install a C compiler (cc)" >&2; exit 1; }; \
		$(SUDO) apt-get update -q && $(SUDO) apt-get install -qy --no-install-recommends gcc libc6-dev; }

.PHONY: exit
exit: release ## let others out through this machine (ARGS="--accept any …")
	$(SUDO) $(BIN) exit $(ARGS)

.PHONY: connect
connect: release ## leave through an exit (TARGET=PUBKEY@ENDPOINT, ARGS="…")
	@test -n '$(TARGET)' || { echo 'make: connect to what? make connect TARGET=PUBKEY@ENDPOINT' >&2; exit 2; }
	$(SUDO) $(BIN) connect '$(TARGET)' $(ARGS)

.PHONY: demo
demo: tools ## a small internet on this machine, and a request that leaves through an exit
	$(SUDO) tests/install-deps.sh
	$(CARGO) build --locked
	$(ROOT_ENV) tests/demo.sh

.PHONY: test
test: tools ## everything: unit, layers, licences, commands, the lab on both back ends
	$(SUDO) tests/install-deps.sh
	$(CARGO) build --locked --workspace --all-targets
	PEERVPN_TEST_BACKEND=userspace $(CARGO) $(AS_ROOT) test --locked --workspace --no-fail-fast
	$(ROOT_ENV) tests/vm/lab

.PHONY: check
check: tools ## format, lints, layers, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) test --locked --quiet --test layering --test licences
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; fi

FUZZ ?= $(basename $(notdir $(wildcard tests/fuzz/fuzz_targets/*.rs)))
FUZZ_SECONDS ?= 60

.PHONY: fuzz
fuzz: tools ## fuzz the parsers (FUZZ=TARGET, FUZZ_SECONDS=60 each; nightly and cargo-fuzz)
	@$(CARGO) +nightly fuzz --version >/dev/null || { echo 'make: rustup toolchain install nightly; cargo install cargo-fuzz' >&2; exit 1; }
	set -e; for target in $(FUZZ); do \
		$(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $$target -- -max_total_time=$(FUZZ_SECONDS); done

.PHONY: vendor
vendor: tools ## fetch the third-party parts of the bundles anew, and check their hashes
	.ci/vendor

# others' userspace devices, to be measured beside ours; crates.io
BENCH_RIVALS ?= boringtun-cli@0.7.1 gotatun-cli@0.10.2
BENCH_BIN := $(or $(CARGO_TARGET_DIR),target)/bench

.PHONY: bench
bench: release ## what it costs beside others, as a table and a plot (tests/bench/results, README)
	$(SUDO) tests/install-deps.sh --bench
	$(CARGO) build --locked --example crowd
	$(CARGO) bench --locked --no-run --bench micro
	CARGO_TARGET_DIR=$(BENCH_BIN)/build $(CARGO) install --locked --quiet --root $(BENCH_BIN) $(BENCH_RIVALS)
	$(ROOT_ENV) tests/bench/run $(ARGS)

.PHONY: build
build: tools ## debug build
	$(CARGO) build --locked --workspace

.PHONY: release
release: tools ## release build
	$(CARGO) build --locked --release

.PHONY: cross
cross: tools ## compile for macOS, Windows and ARM; run the latter two under Wine and qemu
	tests/cross/check all aarch64-apple-darwin
	tests/cross/check platform x86_64-pc-windows-gnu
	tests/cross/run

TARGETS ?=

.PHONY: dist
dist: tools ## bundles with licences and checksums, into target/dist (TARGETS="x86_64-pc-windows-gnu …")
	.ci/dist $(TARGETS)
	for deb in $(or $(CARGO_TARGET_DIR),target)/dist/*.deb; do [ ! -e "$$deb" ] || tests/cross/deb "$$deb" || exit; done

# which service manager gets its units
SYSTEM ?= $(shell uname -s)
AS_ADMIN := $(if $(DESTDIR),,$(SUDO))
DAEMONS := /Library/LaunchDaemons
PLISTS := $(patsubst platform/launchd/%,%,$(wildcard platform/launchd/*.plist))

.PHONY: install
ifeq ($(SYSTEM),Darwin)
install: release
	$(AS_ADMIN) install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(DAEMONS)'
	$(AS_ADMIN) install -m 0755 $(BIN) '$(DESTDIR)$(PREFIX)/bin/peervpn'
	for plist in $(PLISTS); do sed 's|@BINDIR@|$(PREFIX)/bin|' "platform/launchd/$$plist" \
		| $(AS_ADMIN) tee "$(DESTDIR)$(DAEMONS)/$$plist" >/dev/null || exit; done
	@# one that is there already is no error, but keeps the plist that it was loaded with
	@test -n '$(DESTDIR)' || $(SUDO) launchctl bootout system/peervpn.recover 2>/dev/null || true
	@test -n '$(DESTDIR)' || $(SUDO) launchctl bootstrap system $(DAEMONS)/peervpn.recover.plist

.PHONY: uninstall
uninstall:
	@# 1: no node runs; 3: the host is not put back, and the program that can do it must stay
	@test -n '$(DESTDIR)' || ! test -x '$(PREFIX)/bin/peervpn' || { $(SUDO) '$(PREFIX)/bin/peervpn' down; test $$? -ne 3; }
	@test -n '$(DESTDIR)' || for plist in $(PLISTS); do $(SUDO) launchctl bootout "system/$${plist%.plist}" 2>/dev/null; done; true
	$(AS_ADMIN) rm -f '$(DESTDIR)$(PREFIX)/bin/peervpn' $(PLISTS:%='$(DESTDIR)$(DAEMONS)/%')
else
install: release ## install into PREFIX (default /usr/local), with units for systemd or launchd
	$(if $(DESTDIR),,$(SUDO)) install -D -m 0755 $(BIN) '$(DESTDIR)$(PREFIX)/bin/peervpn'
	$(if $(DESTDIR),,$(SUDO)) install -d '$(DESTDIR)$(UNITS)/sysinit.target.wants'
	for unit in platform/systemd/*.service; do sed 's|@BINDIR@|$(PREFIX)/bin|' "$$unit" \
		| $(if $(DESTDIR),,$(SUDO)) install -m 0644 /dev/stdin "$(DESTDIR)$(UNITS)/$${unit##*/}" || exit; done
	$(if $(DESTDIR),,$(SUDO)) ln -sf ../peervpn-recover.service '$(DESTDIR)$(UNITS)/sysinit.target.wants/peervpn-recover.service'
	@test -n '$(DESTDIR)' || ! test -d /run/systemd/system || $(SUDO) systemctl daemon-reload

.PHONY: uninstall
uninstall: ## put the host back and remove the program; its state stays
	@# 1: no node runs; 3: the host is not put back, and the program that can do it must stay
	@test -n '$(DESTDIR)' || ! test -x '$(PREFIX)/bin/peervpn' || { $(SUDO) '$(PREFIX)/bin/peervpn' down; test $$? -ne 3; }
	$(if $(DESTDIR),,$(SUDO)) rm -f '$(DESTDIR)$(PREFIX)/bin/peervpn' \
		$(patsubst platform/systemd/%,'$(DESTDIR)$(UNITS)/%',$(wildcard platform/systemd/*.service)) \
		'$(DESTDIR)$(UNITS)/sysinit.target.wants/peervpn-recover.service'
	@test -n '$(DESTDIR)' || ! test -d /run/systemd/system || $(SUDO) systemctl daemon-reload
endif

.PHONY: clean
clean: ## remove what was built
	$(CARGO) clean
