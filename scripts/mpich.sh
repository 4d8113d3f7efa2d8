#!/usr/bin/env bash
# Makes .venv-mpich: MPICH as the second MPI for tests and for clusters that have it. Everything else,
# the platform and torch included, is .venv's, so it takes seconds. A second run does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
VENV=$ROOT/.venv-mpich
MPICH=mpich==5.0.2

bash scripts/setup.sh
shared=$("$ROOT/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
key="$MPICH $shared $("$ROOT/.venv/bin/python" --version)"
[ "$(cat "$VENV/stamp" 2>/dev/null)" = "$key" ] && exit 0

printf 'setup: installing %s\n' "$MPICH" >&2
rm -rf "$VENV"
"$ROOT/.venv/bin/python" -m venv --without-pip "$VENV"
own=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n%s\n' "$shared" "$ROOT" >"$own/shared.pth"
if ! "$ROOT/.venv/bin/python" -m pip --disable-pip-version-check --no-input \
    --python "$VENV/bin/python" install --quiet --no-deps "$MPICH" >"$VENV/setup.log" 2>&1 </dev/null
then
    echo "dlp: error: installing $MPICH failed: $(tail -1 "$VENV/setup.log" | cut -c1-200) - do: correct that and run the same command again" >&2
    exit 3
fi
sed "1s|.*|#!$VENV/bin/python|" "$ROOT/.venv/bin/dlp" >"$VENV/bin/dlp"
chmod +x "$VENV/bin/dlp"
printf '%s' "$key" >"$VENV/stamp"
