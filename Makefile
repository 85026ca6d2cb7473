# The commands of a working day. `make check` is fast, `make test` is everything that CI runs.

CARGO ?= cargo
# Warnings are errors in CI only, so that work in progress can be built.
DENY := $(if $(CI),-D warnings,)
# The documentation is that of the whole source, private items included, so it may link to them.
DOC_DENY := $(DENY) -A rustdoc::private_intra_doc_links

.PHONY: check test demo bench torture fuzz sim sim-rules tools

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- $(DENY)
	RUSTDOCFLAGS="$(DOC_DENY)" $(CARGO) doc --workspace --no-deps --document-private-items --quiet
	scripts/run-tests.sh unit

test: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- $(DENY)
	RUSTDOCFLAGS="$(DOC_DENY)" $(CARGO) doc --workspace --no-deps --document-private-items --quiet
	scripts/run-tests.sh all

tools:
	scripts/require-tools.sh test

demo:
	scripts/require-tools.sh demo
	scripts/demo.sh

# Some measures, or other sizes: make bench BENCH="randread,restore --pairs 9"
BENCH ?= all
bench:
	scripts/require-tools.sh bench
	$(CARGO) build --release --workspace --bins
	target/release/bench run $(BENCH)

# One scenario, or another length: make torture TORTURE="kill-source --seed 7 --cycles 20"
torture:
	scripts/require-tools.sh torture
	$(CARGO) build --workspace --bins
	$(CARGO) run --quiet --bin torture -- $(TORTURE)

# The simulations: fresh seeds for a minute, or one seed again: make sim SEED=7
sim:
	scripts/sim.sh $(SEED)

# How many seeds it takes to notice each rule that is switched off.
sim-rules:
	scripts/sim.sh rules

fuzz:
	scripts/fuzz.sh
