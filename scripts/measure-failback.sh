#!/bin/sh
# Times a failback to a point some changes ago against copying the whole disk, with the release build, on this machine.
#
#   SIZE_MIB=8192 CHANGED_MIB=1024 scripts/measure-failback.sh
#
# BIN is the folder of the agents (default target/release), DIR where the files go (default a new temporary folder; it needs
# about three times SIZE_MIB). The disk is full of content that doesn't compress. Prints seconds; removes what it made.
set -eu

size=${SIZE_MIB:-8192}
changed=${CHANGED_MIB:-1024}
bin=${BIN:-$(dirname "$0")/../target/release}
root=$(mktemp -d "${DIR:-${TMPDIR:-/tmp}}/backhaul-measure.XXXXXX")
source_pid=
target_pid=

finish() {
    for pid in $source_pid $target_pid; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    rm -rf "$root"
}
trap finish EXIT
trap 'exit 1' INT TERM

now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }
target() { command=$1; shift; "$bin/master-target" "$command" --config "$root/mt.toml" "$@"; }
source() { command=$1; shift; "$bin/process-server" "$command" --config "$root/ps.toml" "$@"; }

# Content that doesn't compress, the same in each run, as fast as the disk takes it.
noise() { openssl enc -aes-128-ctr -pass "pass:$1" -nosalt -pbkdf2 -iter 1 < /dev/zero 2>/dev/null | head -c "$2"; }

mkdir -p "$root/run" "$root/ds1/web" "$root/retention"
noise disk $((size << 20)) > "$root/source.img"
"$bin/master-target" pki --dir "$root/keys" --process-server ps-1 --master-target mt-1 --san 127.0.0.1 > /dev/null
port=${PORT:-19443}
cat > "$root/ps.toml" <<END
name = "ps-1"
state_dir = "$root/process-server"
control = "$root/run/ps.sock"
[tls]
ca = "$root/keys/ca.pem"
cert = "$root/keys/ps-1.pem"
key = "$root/keys/ps-1.key"
[master_target]
address = "127.0.0.1:$port"
name = "mt-1"
[[group]]
name = "web"
[[group.disk]]
name = "os"
source = "$root/source.img"
nbd = "unix:$root/run/os.sock"
END
cat > "$root/mt.toml" <<END
name = "mt-1"
listen = "127.0.0.1:$port"
state_dir = "$root/master-target"
control = "$root/run/mt.sock"
retention = "$root/retention"
[tls]
ca = "$root/keys/ca.pem"
cert = "$root/keys/mt-1.pem"
key = "$root/keys/mt-1.key"
[[datastore]]
name = "ds1"
path = "$root/ds1"
[[group]]
name = "web"
process_server = "ps-1"
[[group.disk]]
name = "os"
target = "[ds1] web/os.vmdk"
END
"$bin/master-target" run --config "$root/mt.toml" 2> "$root/mt.log" & target_pid=$!
"$bin/process-server" run --config "$root/ps.toml" 2> "$root/ps.log" & source_pid=$!

until source status --json 2>/dev/null | grep -q '"state": *"streaming"'; do sleep 1; done
before=$(source point --group web --label before)
noise change $((changed << 20)) > "$root/change"
nbdcopy --flush "$root/change" "nbd+unix:///web/os?socket=$root/run/os.sock" 2>/dev/null ||
    qemu-io -f raw -c "write -q -s $root/change 0 ${changed}M" "nbd+unix:///web/os?socket=$root/run/os.sock" > /dev/null
source point --group web --label after > /dev/null
until target status --json | awk '/"durable_set"/ { d = $2 } /"applied_set"/ { a = $2 } END { exit d != a }'; do sleep 1; done
target failback --group web --point before --dry-run

drop() { sync; echo 3 > /proc/sys/vm/drop_caches 2>/dev/null || true; }
drop
start=$(now)
target failback --group web --point before > "$root/report"
rollback=$(since "$start")
drop
start=$(now)
target failback --group web --point after > /dev/null
undo=$(since "$start")
drop
start=$(now)
dd if="$root/ds1/web/os-flat.vmdk" of="$root/copy" bs=4M iflag=direct oflag=direct conv=fsync status=none
copy=$(since "$start")

echo "disk $size MiB, $changed MiB of changes since point $before"
echo "failback to the point, checksums of the whole disk included: $rollback s"
echo "its undo, after the disk was compared with what it was: $undo s"
echo "copying the whole disk (dd, 4 MiB, direct): $copy s"
