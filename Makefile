# The two commands of the README are `make demo` and `make test`. Everything that they need is installed
# by name from the package registries; nothing else is fetched.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CARGO_TERM_COLOR ?= auto
PREFIX ?= /usr/local

.PHONY: help demo page test prove bench fuzz dist install accept-api accept-header setup setup-demo

help:
	@echo "make demo    build, then see two processes on one virtual network"
	@echo "make page    build the package for browsers, and the page that 'unisockets signal serve' hands out"
	@echo "make test    pass everything bounded"
	@echo "make prove   the long suites and matrices"
	@echo "make bench   measure; writes bench/results.json"
	@echo "make fuzz    fuzz every target for a minute"
	@echo "make accept-api  write down what has changed in the public API"
	@echo "make install PREFIX=/usr/local  the tool, the C library, headers, the preloaded library"
	@echo "make accept-header  write the C header anew"
	@echo "make dist    a tarball that runs on a bare Debian 12"

setup-demo:
	@packaging/setup demo

setup-page:
	@packaging/setup page

setup:
	@packaging/setup test

demo: setup-demo
	cargo build --release --locked --bin unisockets
	@$${CARGO_TARGET_DIR:-target}/release/unisockets demo

page: setup-page
	@wasm/browser/build

test: setup
	@tests/run

prove: setup
	@tests/run prove

bench: setup
	@bench/run

fuzz: setup-demo
	@for target in frame signal protocol packet ports wire decoders; do fuzz/run $$target 60; done

accept-api: setup-demo
	UNISOCKETS_ACCEPT_API=1 cargo test --locked -p unisockets-api

accept-header: setup-demo
	UNISOCKETS_ACCEPT_HEADER=1 cargo test --locked -p unisockets-capi --test header the_header_is

install: setup-demo
	@packaging/install "$(PREFIX)"

dist: setup-page
	@packaging/dist
