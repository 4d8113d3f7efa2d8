#!/usr/bin/env bash
# Sets up once, checks style and types, then runs the tests.
#   --slow      the slow tests, too (--slow --long: long forms of them besides)
#   --no-lint   only the tests
#   anything else goes to pytest: bash scripts/test.sh tests/launch -k kill; without, all tests run
#               in lanes side by side (scripts/lanes.py)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONDONTWRITEBYTECODE # a thousand processes start here: what one has compiled serves all
lint=yes
rest=()
for word in "$@"; do
    if [ "$word" = --no-lint ]; then lint=no; else rest+=("$word"); fi
done
lanes=() slow=no
case "${rest[*]}" in "" | --slow | "--slow --long") lanes=(python scripts/lanes.py) ;; esac
case " ${rest[*]} " in *" --slow "*) slow=yes ;; esac
prepare() { # while pip keeps one processor busy; what goes wrong is told by the tests that need it
    bash scripts/slurm_here.sh install
    compgen -G "/sys/class/infiniband/*" || bash scripts/rdma_vm/build.sh
}
if [ $slow = yes ] && [ ${#lanes[@]} != 0 ]; then prepare >/dev/null 2>&1 & fi
bash scripts/setup.sh
if [ $slow = yes ]; then bash scripts/mpich.sh; fi # they run with both MPIs
export PATH="$PWD/.venv/bin:$PATH"
if [ "$lint" = yes ]; then
    ruff check .
    ruff format --check --quiet . || { ruff format --check . | tail -20; exit 1; }
    if [ ${#lanes[@]} = 0 ]; then mypy; else lanes+=(--types); fi
fi
if [ ${#lanes[@]} != 0 ]; then exec "${lanes[@]}" "${rest[@]}"; fi
exec python -m pytest "${rest[@]}"
