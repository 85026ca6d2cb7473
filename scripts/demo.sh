#!/usr/bin/env bash
# The main job in two minutes: a disk with a real file system is replicated under load, damaged, brought back from a
# recovery point, failed back bit-identical, undone, and committed. Works as root or not, and leaves nothing behind.
#
# usage: scripts/demo.sh            (make demo checks the tools first)
#   DEMO_DIR=/path   where to work; needs about 4 GiB (default: the temporary folder)
#   DEMO_BIN=/path   use these binaries instead of building them
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

disk_bytes=$((1 << 30))
fs_bytes=$((768 << 20))    # the file system; the rest of the disk is where fio writes, as on a second partition
load_bytes=$((192 << 20))

if [ -z "${DEMO_BIN:-}" ]; then
    echo "building (release) ..."
    ${CARGO:-cargo} build --release --quiet --bins
    DEMO_BIN=${CARGO_TARGET_DIR:-target}/release
fi
ps=$(realpath "$DEMO_BIN/process-server")
mt=$(realpath "$DEMO_BIN/master-target")

work=$(mktemp -d "${DEMO_DIR:-${TMPDIR:-/tmp}}/backhaul-demo.XXXXXX")
pids=()
cleanup() {
    local code=$?
    trap - EXIT
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    if [ $code != 0 ]; then
        echo
        echo "the demo failed ($code); the last lines of the agents' logs:" >&2
        tail -n 15 "$work"/*.log >&2 2>/dev/null || true
    fi
    rm -rf "$work"
    exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

free_bytes=$(($(df --output=avail -k "$work" | tail -1) * 1024))
if [ "$free_bytes" -lt $((4 << 30)) ]; then
    echo "$work has $((free_bytes >> 20)) MiB free, the demo needs 4096: set DEMO_DIR to a roomier folder" >&2
    exit 1
fi

# ---------------------------------------------------------------- small tools

now() { echo "${EPOCHREALTIME/./}"; }                                 # microseconds
seconds_since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", (b - a) / 1e6 }'; }
mib() { awk -v b="$1" 'BEGIN { printf "%.1f MiB", b / 1048576 }'; }
field() { grep -o "\"$1\": *[^,}]*" <<<"$2" | head -1 | sed 's/^[^:]*: *//; s/"//g; s/ *$//'; }
source_status() { "$ps" status --config "$work/process-server.toml" --json; }
target_status() { "$mt" status --config "$work/master-target.toml" --json; }
step() { printf '\n== %s\n' "$*"; }
table=()
row() { table+=("$1|$2|$3"); }
identical() { # what, arguments of qemu-img compare ...
    local what=$1 said
    shift
    said=$(qemu-img compare "$@" 2>&1) || { echo "$what differ: $said" >&2; return 1; }
    echo "$what are identical (qemu-img compare)"
}

wait_for() { # what, seconds, command ...
    local what=$1 limit=$2 started
    shift 2
    started=$(now)
    until "$@"; do
        for pid in "${pids[@]}"; do
            kill -0 "$pid" 2>/dev/null || { echo "an agent ended while waiting for: $what" >&2; return 1; }
        done
        if [ $(($(now) - started)) -gt $((limit * 1000000)) ]; then
            echo "waited $limit s for: $what" >&2
            return 1
        fi
        sleep 0.2
    done
}

# ---------------------------------------------------------------- keys and disks

step "keys, a 1 GiB disk with an ext4 file system full of files, a datastore, a retention volume"
started=$(now)
mkdir "$work"/{tree,run,datastore,datastore/web,retention}
"$mt" pki --dir "$work/keys" --process-server ps-1 --master-target mt-1 --san 127.0.0.1 >/dev/null
# Real files: what this machine has to read, up to 200 MiB.
for folder in /usr/share/doc /usr/share/perl /usr/lib/python3 /usr/include /usr/share/zoneinfo; do
    [ -d "$folder" ] || continue
    [ "$(du -sm "$work/tree" | cut -f1)" -lt 160 ] || break
    cp -rP --preserve=mode,timestamps "$folder" "$work/tree/" 2>/dev/null || true
done
cp -P --preserve=mode,timestamps /bin/bash "$ps" "$mt" "$work/tree/"
chmod -R u+rwX "$work/tree"
files=$(find "$work/tree" -type f | wc -l)
truncate -s $disk_bytes "$work/source.img"
mkfs.ext4 -q -F -d "$work/tree" "$work/source.img" $((fs_bytes / 1024))k
echo "$files files, $(du -sm "$work/tree" | cut -f1) MiB, in an ext4 file system"
row "disk with $files files made" "$(seconds_since "$started")" "$(mib "$disk_bytes")"

port=
for candidate in $(shuf -i 20000-60000 -n 20); do
    if ! grep -qi ":$(printf '%04X' "$candidate") " /proc/net/udp /proc/net/udp6 2>/dev/null; then
        port=$candidate
        break
    fi
done

cat >"$work/process-server.toml" <<EOF
name = "ps-1"
state_dir = "$work/process-server"
control = "$work/run/process-server.sock"
[tls]
ca = "$work/keys/ca.pem"
cert = "$work/keys/ps-1.pem"
key = "$work/keys/ps-1.key"
[master_target]
address = "127.0.0.1:$port"
name = "mt-1"
[[group]]
name = "web"
point_interval = "1s"
[[group.disk]]
name = "os"
source = "$work/source.img"
nbd = "unix:$work/run/web-os.sock"
EOF
cat >"$work/master-target.toml" <<EOF
name = "mt-1"
listen = "127.0.0.1:$port"
state_dir = "$work/master-target"
control = "$work/run/master-target.sock"
retention = "$work/retention"
[tls]
ca = "$work/keys/ca.pem"
cert = "$work/keys/mt-1.pem"
key = "$work/keys/mt-1.key"
[[datastore]]
name = "ds1"
path = "$work/datastore"
[[group]]
name = "web"
process_server = "ps-1"
retention = "24h"
[[group.disk]]
name = "os"
target = "[ds1] web/os.vmdk"
EOF
export_uri="nbd+unix:///web/os?socket=$work/run/web-os.sock"
point() { "$ps" point --config "$work/process-server.toml" --group web --label "$1"; }

# ---------------------------------------------------------------- initial synchronisation

step "both agents start; the disk is synchronised to a VMDK that doesn't exist yet"
started=$(now)
"$mt" run --config "$work/master-target.toml" >"$work/master-target.log" 2>&1 &
pids+=($!)
"$ps" run --config "$work/process-server.toml" >"$work/process-server.log" 2>&1 &
pids+=($!)
answers() { source_status >/dev/null 2>&1 && target_status >/dev/null 2>&1; }
wait_for "both agents to answer" 20 answers
protected() {
    local source target
    source=$(source_status) target=$(target_status)
    [ "$(field state "$source")" = streaming ] && [ "$(field state "$target")" = protected ]
}
wait_for "the initial synchronisation" 60 protected
status=$(source_status)
wire_before=$(field sent_bytes "$status")
row "initial synchronisation, wire" "$(seconds_since "$started")" "$(mib "$wire_before")"
echo "protected after $(seconds_since "$started"): $(mib "$wire_before") on the wire for a disk of $(mib $disk_bytes)"

# ---------------------------------------------------------------- load and points

step "fio writes and verifies through NBD while points are taken"
captured_before=$(field captured_bytes "$status")
started=$(now)
fio --name=demo --ioengine=nbd --uri="$export_uri" --rw=randwrite --bssplit=4k/70:16k/20:64k/10 --iodepth=16 \
    --offset=$fs_bytes --size=$load_bytes --rate=16m \
    --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 --randrepeat=1 \
    --output-format=normal --output="$work/fio.txt" >/dev/null 2>"$work/fio.err" &
fio_pid=$!
rpo=()
labels=(breakfast lunch tea)
next_label=$((started + 3000000))
while kill -0 $fio_pid 2>/dev/null; do
    sample=$(field rpo_seconds "$(source_status)")
    [ "$sample" = null ] || rpo+=("$sample")
    if [ ${#labels[@]} -gt 0 ] && [ "$(now)" -gt "$next_label" ]; then
        echo "point ${labels[0]}: $(point "${labels[0]}")"
        labels=("${labels[@]:1}")
        next_label=$(($(now) + 3000000))
    fi
    sleep 0.25
done
wait $fio_pid || { cat "$work/fio.txt" "$work/fio.err" >&2; exit 1; }
grep -E 'WRITE:|READ:' "$work/fio.txt" | sed 's/^ */  fio /'
echo "point good: $(point good)"
status=$(source_status)
captured=$(($(field captured_bytes "$status") - captured_before))
wire=$(($(field sent_bytes "$status") - wire_before))
rpo_line=$(printf '%s\n' "${rpo[@]}" | sort -n | awk '{ v[NR] = $1 } END { printf "median %.1f s, worst %.1f s", v[int((NR + 1) / 2)], v[NR] }')
row "fio: written to the disk, verified" "$(seconds_since "$started")" "$(mib "$captured")"
row "fio: sent on the wire" "" "$(mib "$wire")"
row "RPO while fio wrote" "$rpo_line" ""

# ---------------------------------------------------------------- damage, restore

step "the disk is damaged through NBD"
qemu-io -f raw -c "write -q -P 0xde 0 48M" -c "discard -q 96M 64M" -c flush "$export_uri"
point damaged >/dev/null
if e2fsck -fn "$work/source.img" >/dev/null 2>&1; then
    echo "the damage did no harm, which can't be" >&2
    exit 1
fi
echo "e2fsck: the file system on the source is broken"

step "the recovery points"
"$mt" points --config "$work/master-target.toml" --group web
count=$("$mt" points --config "$work/master-target.toml" --group web --json | grep -o '"id"' | wc -l)
row "recovery points" "" "$count"

step "the last good point is restored to a file while replication goes on"
started=$(now)
"$mt" restore --config "$work/master-target.toml" --group web --disk os --point good --to "$work/good.raw" | tail -n 3
row "restore of point 'good'" "$(seconds_since "$started")" "$(mib $disk_bytes)"
e2fsck -fn "$work/good.raw" >"$work/e2fsck.txt" 2>&1 || { cat "$work/e2fsck.txt" >&2; exit 1; }
echo "e2fsck -fn: clean ($(tail -n 1 "$work/e2fsck.txt" | sed 's/^[^:]*: //'))"
mkdir "$work/out"
debugfs -R "rdump / $work/out" "$work/good.raw" >/dev/null 2>&1
rm -rf "$work/out/lost+found"
diff -r --no-dereference "$work/tree" "$work/out"
echo "all $files files are identical"
row "e2fsck -fn and comparison of all files" "identical" "$files files"
rm -rf "$work/out"

step "the same point is mounted at once, without a copy; replication goes on"
started=$(now)
mounted=$("$mt" mount --config "$work/master-target.toml" --group web --point good --nbd "unix:$work/run/good.sock")
row "mount of point 'good'" "$(seconds_since "$started")" "no copy"
mount_id=$(head -1 <<<"$mounted")
mount_uri=$(tail -1 <<<"$mounted")
echo "$mount_uri"
identical "the mounted point and the restored file" -U -f raw -F raw "$mount_uri" "$work/good.raw"
"$mt" unmount --config "$work/master-target.toml" "$mount_id"
row "mounted point and restored file" "identical" ""

# ---------------------------------------------------------------- rollback, undo, commit

vmdk=$work/datastore/web/os.vmdk
failback() { "$mt" failback --config "$work/master-target.toml" --group web "$@"; }
holds() { identical "the VMDK and $1" -f raw -F vmdk "$2" "$vmdk"; }

step "what a rollback to 'good' would take; nothing is changed by asking"
failback --point good --dry-run

step "rollback: the source is fenced, the last good point is put on the VMDK"
started=$(now)
failback --point good --json
row "failback to 'good'" "$(seconds_since "$started")" ""
holds "the restored point" "$work/good.raw"
row "qemu-img compare point 'good' and VMDK" "identical" "$(mib $disk_bytes)"

step "undo: the newest state, from before the rollback, is put back"
"$mt" points --config "$work/master-target.toml" --group web | tail -n 3
started=$(now)
failback --point latest
row "undo of the rollback" "$(seconds_since "$started")" ""
holds "the fenced source" "$work/source.img"
row "qemu-img compare source and VMDK" "identical" "$(mib $disk_bytes)"

step "the choice is 'good' after all, and is committed"
failback --point good >/dev/null 2>&1
holds "the restored point" "$work/good.raw"
"$mt" commit --config "$work/master-target.toml" --group web --yes
count=$("$mt" points --config "$work/master-target.toml" --group web --json | grep -o '"id"' | wc -l) || true
row "recovery points after the commit" "" "$count"
"$mt" jobs --config "$work/master-target.toml"
if qemu-io -f raw -c "write -q 0 4k" "$export_uri" >"$work/fenced.txt" 2>&1; then
    echo "a fenced disk took a write" >&2
    exit 1
fi
echo "the source is fenced: $(head -n 1 "$work/fenced.txt")"
qemu-io -r -f raw -c "read -q 0 4k" "$export_uri"
echo "and can still be read"

# ---------------------------------------------------------------- the end

step "what was done"
printf '%-42s %-32s %s\n' "what" "how long / result" "bytes / count"
for line in "${table[@]}"; do
    IFS='|' read -r what time bytes <<<"$line"
    printf '%-42s %-32s %s\n' "$what" "$time" "$bytes"
done
