#!/usr/bin/env bash
# Runs the tests with cargo-nextest where it is installed, else with cargo test.
#
# usage: scripts/run-tests.sh unit|all
#   unit  everything but the whole-system tests
#   all   everything; with root, also the tests that need it (loop devices)
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

purpose=${1:?usage: $0 unit|all}
cargo=${CARGO:-cargo}

case $purpose in
unit)
    if $cargo nextest --version >/dev/null 2>&1; then
        $cargo nextest run --workspace --exclude tests
    else
        $cargo test --quiet --workspace --exclude tests
    fi
    exit
    ;;
all) ;;
*) echo "$0: unknown purpose '$purpose'" >&2; exit 2 ;;
esac

# One build makes the agents and the tests that start them.
$cargo build --workspace --all-targets

if [ "$(id -u)" = 0 ]; then
    nextest_ignored="--run-ignored all" libtest_ignored="--include-ignored"
else
    nextest_ignored="" libtest_ignored=""
    echo "NOT ROOT: the tests that need loop devices are left out, see 'ignored' or 'skipped' below."
fi

# shellcheck disable=SC2086  # empty or several words
if $cargo nextest --version >/dev/null 2>&1; then
    $cargo nextest run --workspace $nextest_ignored
    $cargo test --quiet --workspace --doc
else
    $cargo test --quiet --workspace -- $libtest_ignored
fi
