#!/usr/bin/env bash
# Makes .venv with everything the platform needs; a second run does nothing.
#   DLP_PYTHON  the Python to use (default: the first of python3.11, 3.12, 3.13, python3)
#   DLP_TORCH   what pip installs as torch, options included; the default names a release because
#               a bare "torch" fetches a CUDA build of several GB. For the CPU build of your choice:
#               DLP_TORCH="torch --index-url URL"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
VENV=$ROOT/.venv
LOG=$VENV/setup.log
TORCH=${DLP_TORCH:-torch==2.13.0}
BEGIN=$SECONDS
PATH=:$PATH:
PATH=${PATH//":$VENV/bin:"/:} # an active .venv must not make itself anew
PATH=${PATH#:}
PATH=${PATH%:}

die() { # what failed - allowed - do
    echo "dlp: error: $1" >&2
    exit 3
}

say() { printf 'setup: %s\n' "$*" >&2; }

key() { # changes when anything that was installed would change
    { echo "$ROOT $TORCH ${DLP_PYTHON:-}"
      cat setup.py pyproject.toml scripts/setup.sh kernels/build.py kernels/native/*.[ch] kernels/native/*/*.[ch]
    } | sha256sum | cut -d' ' -f1
}

find_python() {
    local name
    for name in ${DLP_PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    die "no Python 3.11 or newer (tried ${DLP_PYTHON:-python3.11 python3.12 python3.13 python3}) - do: apt-get install -y python3 python3-venv, or DLP_PYTHON=/path/to/python3.11"
}

apt_install() { # only root may; everybody else is told the line
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "apt-get install $*"
    { apt update && apt install -y --no-install-recommends "$@"; } >>"$LOG" 2>&1 </dev/null
}

apt() { # one script at a time
    DEBIAN_FRONTEND=noninteractive flock /etc/apt apt-get -o DPkg::Lock::Timeout=300 "$@"
}

stage() { # text, command...: one line when it starts, one clear line when it fails
    local text=$1
    shift
    say "$text"
    "$@" >>"$LOG" 2>&1 </dev/null ||
        die "$text failed: $(grep -iE 'error|no space' "$LOG" | tail -1 | cut -c1-200) - everything it said: $LOG - do: correct that and run the same command again"
}

compile() { # by importing: most files that pip installs are never read
    env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -c 'import dlplatform.trainer, launch.compose, trainers
import torch.utils.tensorboard, matplotlib.pyplot'
}

has_compiler() {
    echo '#include <pthread.h>
int main(void) { return 0; }' | "${CC:-cc}" -x c -o /dev/null - >>"$LOG" 2>&1
}

mkdir -p "$VENV"
if [ "$(cat "$VENV/stamp" 2>/dev/null)" = "$(key)" ] && [ -e kernels/_native.so ]; then
    exit 0
fi
if command -v flock >/dev/null; then # two commands started at once: the second one waits
    exec 9>"$VENV/lock"
    flock -n 9 || { say "another set-up is running, waiting for it"; flock 9; }
    [ "$(cat "$VENV/stamp" 2>/dev/null)" = "$(key)" ] && [ -e kernels/_native.so ] && exit 0
fi
: >"$LOG"
rm -f "$VENV/stamp"

PYTHON=$(find_python)
if ! "$PYTHON" -c 'import ensurepip, venv' 2>>"$LOG"; then
    minor=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$minor-venv" || apt_install python3-venv ||
        die "$PYTHON has no venv module - do: apt-get install -y python$minor-venv"
fi
has_compiler || apt_install gcc libc6-dev ||
    die "no C compiler (${CC:-cc}) for the kernels - do: apt-get install -y gcc libc6-dev"
has_compiler || die "${CC:-cc} cannot build a C program - do: apt-get install -y gcc libc6-dev"

if [ "$(cat "$VENV/home" 2>/dev/null)" != "$ROOT $PYTHON" ] || ! "$VENV/bin/python" -c '' 2>/dev/null; then
    # Emptied by hand: --clear would take the lock and the log away.
    find "$VENV" -mindepth 1 -maxdepth 1 ! -name lock ! -name setup.log -exec rm -rf {} +
    stage "making .venv with $("$PYTHON" --version)" "$PYTHON" -m venv "$VENV"
    echo "$ROOT $PYTHON" >"$VENV/home"
fi
PIP=("$VENV/bin/python" -m pip --disable-pip-version-check --no-input)
# shellcheck disable=SC2086  # DLP_TORCH may hold options
stage "installing $TORCH (about 200 MB, the longest part)" "${PIP[@]}" install --no-compile $TORCH
stage "installing the build tools" "${PIP[@]}" install "setuptools>=70.1"
stage "building the kernels, installing the platform, MPI and the tests" \
    "${PIP[@]}" install --no-compile --no-build-isolation -e ".[mpi,dev]"
[ -e kernels/_native.so ] || stage "building the kernels" "$VENV/bin/python" -m kernels.build
stage "compiling what is used" compile
key >"$VENV/stamp"
say "ready in $((SECONDS - BEGIN)) s"
