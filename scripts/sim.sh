#!/usr/bin/env bash
# Runs the simulations: the source's group core against simulated disks, link and target, and the target's journal
# against a simulated volume. Everything in them comes from a seed.
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

case ${1:-} in
rules)
    export JOURNAL_RULE_SEEDS=${JOURNAL_RULE_SEEDS:-600}
    run "$rules" | grep -E 'caught|say nothing|^error|panicked'
    ;;
"")
    from=$(date +%s)
    until=$((from + ${SIM_SECONDS:-60}))
    seeds=500
    total=0
    while [ "$(date +%s)" -lt "$until" ]; do
        seed=$((from * 1000 + total))
        export GROUP_SEED=$seed GROUP_SEEDS=$seeds JOURNAL_SEED=$seed JOURNAL_SEEDS=$((seeds / 5))
        for what in "$group" "$journal"; do
            if ! output=$(run "$what"); then
                printf '%s\n' "$output" | grep -vE '^ *$|^running|^test result: ok'
                echo "FAILED: the output names the seed; scripts/sim.sh SEED runs it again" >&2
                exit 1
            fi
        done
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
    run "$group"
    run "$journal"
    ;;
esac
