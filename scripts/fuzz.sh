#!/usr/bin/env bash
# Runs every fuzz target for a short time, without sanitizer, so that the stable toolchain will do.
#
# usage: scripts/fuzz.sh [target ...]
#   FUZZ_SECONDS=30   time for each target
# A crash leaves its input in fuzz/artifacts/TARGET; `cargo fuzz run -s none TARGET FILE` runs it again.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

scripts/require-tools.sh fuzz
if ! $cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz ..."
    $cargo install --quiet --locked cargo-fuzz
fi

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <($cargo fuzz list)
for target in "${targets[@]}"; do
    echo "== $target"
    # What is found goes to the first folder; seeds come from the second.
    mkdir -p "fuzz/corpus/$target" "fuzz/seeds/$target"
    $cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="${FUZZ_SECONDS:-30}" -rss_limit_mb=1024 -print_final_stats=0
done
