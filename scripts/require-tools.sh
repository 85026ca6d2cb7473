#!/usr/bin/env bash
# Makes sure that the programs a make target needs are there: installs their Debian packages when root, otherwise
# fails and names them. Nothing is left out silently because a program is missing.
#
# usage: scripts/require-tools.sh build|demo|test|bench|torture|fuzz
set -euo pipefail

purpose=${1:?usage: $0 build|demo|test|bench|torture|fuzz}

# program=package, one per line and purpose.
build="cc=gcc"
demo="$build mkfs.ext4=e2fsprogs e2fsck=e2fsprogs debugfs=e2fsprogs fio=fio qemu-img=qemu-utils qemu-io=qemu-utils"
test="$demo dumpe2fs=e2fsprogs nbdfuse=libnbd-bin nbdkit=nbdkit fusermount3=fuse3 fsfreeze=util-linux nbdinfo=libnbd-bin nbdcopy=libnbd-bin nbdsh=python3-libnbd losetup=mount openssl=openssl"
# File systems for the preflight; FAT by FUSE, since not every kernel has it.
test="$test mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs mkfs.vfat=dosfstools mkfs.exfat=exfatprogs"
test="$test mount.exfat-fuse=exfat-fuse fusefat=fusefat initdb=postgresql pgbench=postgresql runuser=util-linux"
torture="$build fio=fio qemu-img=qemu-utils ip=iproute2 tc=iproute2"
fuzz="$build c++=g++"
# Debian moved QEMU's storage daemon after version 12.
daemon=qemu-utils
if grep -qx 'VERSION_ID="12"' /etc/os-release; then daemon=qemu-system-common; fi
bench="$build fio=fio qemu-nbd=qemu-utils qemu-img=qemu-utils qemu-storage-daemon=$daemon nbdkit=nbdkit \
nbdcopy=libnbd-bin nbdfuse=libnbd-bin rsync=rsync zstd=zstd perl=perl-base ip=iproute2 tc=iproute2 losetup=mount \
mkfs.ext4=e2fsprogs setpriv=util-linux initdb=postgresql pgbench=postgresql"

case $purpose in
build | demo | test | bench | torture | fuzz) wanted=${!purpose} ;;
*) echo "$0: unknown purpose '$purpose'" >&2; exit 2 ;;
esac

# Where Debian keeps the tools for file systems and databases; not in every user's PATH.
PATH=$PATH:/usr/sbin:/sbin
for folder in /usr/lib/postgresql/*/bin; do PATH=$PATH:$folder; done

missing_packages() {
    local pair
    for pair in $wanted; do
        command -v "${pair%%=*}" >/dev/null || echo "${pair##*=}"
    done | sort -u
}

packages=$(missing_packages)
if [ -n "$packages" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "missing Debian packages:" $packages >&2
        echo "install them with: sudo apt-get install --no-install-recommends" $packages >&2
        exit 1
    fi
    echo "installing Debian packages:" $packages
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    packages=$(missing_packages)
    if [ -n "$packages" ]; then
        echo "still missing after the installation:" $packages >&2
        exit 1
    fi
fi

# A demo of binaries that are there builds nothing.
if [ "$purpose:${DEMO_BIN:+given}" != demo:given ] && ! command -v cargo >/dev/null; then
    echo "cargo is missing: install the Rust toolchain, https://rustup.rs" >&2
    exit 1
fi

case " $wanted " in
*" fio=fio "*)
    if ! fio --enghelp | grep -qw nbd; then
        echo "this fio has no nbd engine: use Debian's package fio (3.33 or newer)" >&2
        exit 1
    fi
    ;;
esac
