#!/usr/bin/env bash
# Runs a command of this project on real RDMA verbs: in a guest with two Soft-RoCE devices and two
# NUMA nodes, under software emulation, on this machine's own files (read-only; what the command writes goes to RAM).
#   usage: bash scripts/rdma_vm/run.sh [--limit SECONDS] [--share DIR] COMMAND...
#     --limit   end the guest after so long (default: RDMA_VM_LIMIT, or 300)
#     --share   a folder that the command may write to, as /run/share
# COMMAND runs in the project's folder with .venv's Python and pyverbs. Its output is ours, and its
# exit status, too; 124: it took too long; 3: the guest could not be made or booted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROOT=$PWD
OUT=$ROOT/build/rdma_vm
LIMIT=${RDMA_VM_LIMIT:-300}
SHARE=

die() {
    echo "dlp: error: $1" >&2
    exit "${2:-3}"
}

while [ $# -gt 0 ]; do
    case $1 in
        --limit) LIMIT=$2 && shift 2 ;;
        --share) mkdir -p "$2" && SHARE=$(readlink -f "$2") && shift 2 ;;
        --) shift && break ;;
        -*) die "run.sh: option $1 - allowed: --limit, --share - do: see its first lines" 2 ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || die "run.sh: no command - allowed: a command of this project - do: bash scripts/rdma_vm/run.sh python -c 'import pyverbs'" 2
bash scripts/rdma_vm/build.sh

work=$(mktemp -d "$OUT/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
share=${SHARE:-$work/share}
mkdir -p "$share"
rm -f "$share/status"
{
    printf 'cd %q\nexport RDMA_VM=1 PATH=%q:$PATH PYTHONPATH=%q PYTHONUNBUFFERED=1\n' \
        "$ROOT" "$ROOT/.venv/bin" "$OUT/python"
    printf 'exec'
    printf ' %q' "$@"
    echo
} >"$share/command"
# Without AVX2: qemu 7 takes a gather's index from elsewhere when it is in register 4. Without the
# timer's check: on a busy machine it fails, and the guest does not boot. With the counter's frequency:
# on a busy machine the guest finds a wrong one, by which its seconds may pass ten times as fast.
khz=$("$ROOT/.venv/bin/python" scripts/rdma_vm/tsc.py)
mkfifo "$work/out"
cat "$work/out" &
reader=$!
code=0
timeout --foreground -k 5 "$LIMIT" qemu-system-x86_64 -M q35 -accel tcg,thread=multi,tb-size=512 -cpu max,avx2=off -smp 2 -m 4096 \
    -object memory-backend-ram,id=near,size=2G -object memory-backend-ram,id=far,size=2G \
    -numa node,cpus=0,memdev=near -numa node,cpus=1,memdev=far \
    -nodefaults -no-user-config -display none -no-reboot -nic none -device virtio-rng-pci \
    -serial "file:$work/console" \
    -chardev "file,id=out,path=$work/out" -device virtio-serial-pci -device virtserialport,chardev=out \
    -kernel "$OUT/vmlinux" -initrd "$OUT/first.gz" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable tsc_early_khz=$khz no_timer_check" \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
    -virtfs "local,path=$share,mount_tag=share,security_model=none,multidevs=remap" \
    </dev/null >>"$work/console" 2>&1 || code=$?
wait "$reader"
cp "$work/console" "$OUT/console.log"
if [ -e "$share/status" ]; then exit "$(cat "$share/status")"; fi
[ "$code" = 124 ] && die "the guest was ended after $LIMIT s - allowed: --limit SECONDS - do: give it more time; its console: $OUT/console.log" 124
die "the guest ended before the command did (qemu: $code): $(tail -1 "$OUT/console.log" | cut -c1-200) - its console: $OUT/console.log - do: look there, or remove $OUT and try again"
