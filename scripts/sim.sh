#!/usr/bin/env bash
# Runs the simulations: the source's group core against simulated disks, link and target; the target's journal against a
# simulated volume; and both agents together. Everything in them comes from a seed.
#
# usage: scripts/sim.sh            fresh seeds, for SIM_SECONDS (60)
#        scripts/sim.sh SEED       one seed of each again
#        scripts/sim.sh rules      each rule switched off: after how many seeds the judge notices
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

group='group::tests::every_point_is_a_prefix_of_what_the_guest_was_told_and_the_copy_converges'
journal='journal::tests::model::'
rules='each_rule_that_is_switched_off_is_missed'

# Shows what the tests print only where they fail, or say something of themselves.
run() {
    $cargo test --quiet --workspace --lib "$1" -- --nocapture 2>&1
}

# The simulation of both agents is a program, built with optimisation and with all assertions.
both() {
    $cargo run --quiet --profile sim -p tests --bin sim -- "$@" 2>&1
}

# Runs something, and shows what it says only where it fails.
quietly() {
    local output
    if ! output=$("$@"); then
        printf '%s\n' "$output" | grep -vE '^ *$|^running|^test result: ok'
        echo "FAILED: the output names the seed; make sim SEED=n runs it again" >&2
        exit 1
    fi
}

case ${1:-} in
rules)
    export RULE_SEEDS=${RULE_SEEDS:-4000}
    export JOURNAL_RULE_SEEDS=${JOURNAL_RULE_SEEDS:-600}
    run "$rules" | grep -E 'caught|say nothing|^error|panicked'
    # Those that have scenarios of their own.
    for scenarios in group::tests::unreadable group::tests::restored journal::tests::stopped; do
        run "$scenarios" | grep -E 'caught|finds nothing|^error'
    done
    both rules
    ;;
"")
    seconds=${SIM_SECONDS:-60}
    from=$(date +%s)
    seeds=500
    total=0
    # Half of the time for both agents, the other half for each alone.
    both $((from * 1000)) 1000000 $((seconds / 2))
    until=$(($(date +%s) + seconds / 2))
    while [ "$(date +%s)" -lt "$until" ]; do
        seed=$((from * 1000 + total))
        export GROUP_SEED=$seed GROUP_SEEDS=$seeds JOURNAL_SEED=$seed JOURNAL_SEEDS=$((seeds / 5))
        quietly run "$group"
        quietly run "$journal"
        total=$((total + seeds))
        echo "$total seeds of the group, $((total / 5)) of the journal: no mismatch"
    done
    ;;
*[!0-9]*)
    echo "usage: $0 [SEED | rules]" >&2
    exit 2
    ;;
*)
    export GROUP_SEED=$1 GROUP_SEEDS=1 JOURNAL_SEED=$1 JOURNAL_SEEDS=1
    both "$1"
    run "$group"
    run "$journal"
    ;;
esac
