#!/usr/bin/env bash
# Makes what run.sh boots: a stock Debian kernel and a first file system with Soft-RoCE's modules.
# Nothing of this machine's own kernel is touched. A second run does nothing.
#   usage: bash scripts/rdma_vm/build.sh        everything goes to build/rdma_vm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
HERE=$PWD/scripts/rdma_vm
OUT=$PWD/build/rdma_vm
LOG=$OUT/build.log
PACKAGES=(qemu-system-x86 busybox-static cpio kmod binutils python3-pyverbs ibverbs-providers rdma-core)
# crc32_generic: without it Soft-RoCE refuses to make a device, and does not say why.
MODULES=(virtio_pci virtio_console virtio_rng 9p 9pnet_virtio overlay veth crc32_generic rdma_rxe
    rdma_ucm ib_uverbs)

die() {
    echo "dlp: error: $1" >&2
    exit 3
}

say() { echo "rdma_vm: $*" >&2; }

quietly() { # text, command...
    "${@:2}" >>"$LOG" 2>&1 </dev/null ||
        die "$1 failed: $(tail -1 "$LOG" | cut -c1-200) - everything it said: $LOG - do: correct that and run the same command again"
}

apt() { # one script at a time
    DEBIAN_FRONTEND=noninteractive flock /etc/apt apt-get -o DPkg::Lock::Timeout=300 "$@"
}

missing() {
    local name
    for name in "${PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || echo "$name"
    done
}

key() { cat "$HERE"/{build.sh,init.sh,guest.sh,vmlinux.py} | sha256sum | cut -d' ' -f1; }

[ "$(uname -m)" = x86_64 ] && command -v apt-get >/dev/null ||
    die "this is $(uname -sm) without Debian's packages - allowed: Debian or Ubuntu on x86_64 - do: run the tests of RDMA there, or on a machine with an RDMA device"
mkdir -p "$OUT"
exec 9>"$OUT/lock"
flock 9
need=$(missing)
if [ -z "$need" ] && [ "$(cat "$OUT/stamp" 2>/dev/null)" = "$(key)" ]; then exit 0; fi
BEGIN=$SECONDS
: >"$LOG"
rm -f "$OUT/stamp"
if [ -n "$need" ]; then
    [ "$(id -u)" = 0 ] || die "missing packages: $(echo $need) - allowed: only root installs them - do: sudo apt-get install -y --no-install-recommends $(echo $need)"
    say "apt-get install" $need
    quietly "apt-get update" apt update
    quietly "apt-get install" apt install -y --no-install-recommends $need
fi

kernel_of() { apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends:/ { print $2; exit }'; }
KERNEL=$(kernel_of)
if [ -z "$KERNEL" ]; then
    quietly "apt-get update" apt update
    KERNEL=$(kernel_of)
fi
[ -n "$KERNEL" ] || die "apt knows no linux-image-amd64 - allowed: Debian's package sources - do: see /etc/apt/sources.list"
cd "$OUT"
if [ ! -d "kernel/boot" ] || [ "$(cat kernel/name 2>/dev/null)" != "$KERNEL" ]; then
    say "downloading $KERNEL (about 70 MB)"
    rm -rf kernel ./"$KERNEL"_*.deb
    quietly "downloading $KERNEL" apt download "$KERNEL"
    quietly "unpacking $KERNEL" dpkg-deb -x "$KERNEL"_*.deb kernel
    rm -f ./"$KERNEL"_*.deb
    echo "$KERNEL" >kernel/name
fi
VERSION=$(ls kernel/lib/modules)
quietly depmod depmod -b kernel "$VERSION"

rm -rf first
mkdir -p first/{bin,dev,proc,sys,lib/modules,tmp}
cp /bin/busybox first/bin/
cp "$HERE/init.sh" first/init
cp "$HERE/guest.sh" first/guest.sh
chmod +x first/init first/guest.sh
for module in "${MODULES[@]}"; do
    modprobe -d kernel -S "$VERSION" --show-depends "$module" 2>>"$LOG" ||
        die "$KERNEL has no module $module - allowed: Debian's standard kernel - do: report this"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >modules.list
while read -r file; do
    cp "$file" first/lib/modules/
    basename "$file" >>first/modules
done <modules.list
quietly strip strip --strip-debug first/lib/modules/*.ko
(cd first && find . -print0 | cpio --null -o --format=newc --quiet --owner=0:0) | gzip -1 >first.gz
quietly "unpacking the kernel" python3 "$HERE/vmlinux.py" "kernel/boot/vmlinuz-$VERSION" vmlinux
# The Debian package is for Debian's Python; one with the same ABI may use it, too. A link of its
# own brings no other package of Debian along.
mkdir -p python
ln -sfn /usr/lib/python3/dist-packages/pyverbs python/pyverbs
key >stamp
say "built in $((SECONDS - BEGIN)) s"
