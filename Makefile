# The commands of README.md. Each installs what it needs from Debian's packages, builds, and runs; `make help` lists them.

CARGO ?= cargo
BOTHY := target/x86_64-unknown-linux-gnu/release/bothy
export BOTHY_GUEST_DIR := $(CURDIR)/target/guest

.PHONY: help build guest dist demo test test-long bench-startup bench-run bench-io lint clean

help:
	@echo 'make demo           boot the default guest, which shows what it finds, and see where the time goes'
	@echo 'make test           every kind of test, at small counts'
	@echo 'make test-long      every kind of test, at full counts'
	@echo 'make bench-startup  start-up and memory, beside the least possible and QEMU'
	@echo 'make bench-run      a command of an image, beside runc and crun'
	@echo 'make bench-io       disks and networks, beside QEMU'
	@echo 'make build          the bothy command: $(BOTHY)'
	@echo 'make guest          its guest (kernel and init), if its inputs have changed: target/guest/'
	@echo 'make dist           one self-contained file with the guest inside: target/dist/bothy'
	@echo 'make lint           formatting and clippy'

build:
	$(CARGO) build --release

guest:
	@tests/packages guest/packages.txt
	@guest/build

dist: build guest
	@mkdir -p target/dist
	$(BOTHY) pack target/dist/bothy
	@ls -l target/dist/bothy

demo: build guest
	@tests/demo $(BOTHY)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

test:
	@tests/run

test-long:
	@tests/run --long

bench-startup: build guest
	@tests/packages benches/packages.txt tests/host/packages.txt
	@benches/run startup

bench-run: build guest
	@tests/packages benches/packages.txt tests/host/packages.txt
	@benches/run container

bench-io: build guest
	@tests/packages benches/packages.txt tests/host/packages.txt
	@benches/run io

clean:
	$(CARGO) clean
