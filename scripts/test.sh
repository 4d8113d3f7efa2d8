#!/usr/bin/env bash
# Sets up once, checks style and types, then runs the tests.
#   --slow      the slow tests, too (--slow --long: long forms of them besides), in lanes side by side (scripts/lanes.py)
#   --no-lint   only the tests
#   anything else goes to pytest: bash scripts/test.sh tests/launch -k kill
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lint=yes
rest=()
for word in "$@"; do
    if [ "$word" = --no-lint ]; then lint=no; else rest+=("$word"); fi
done
bash scripts/setup.sh
case " $* " in *" --slow "*) bash scripts/mpich.sh ;; esac  # they run with both MPIs
export PATH="$PWD/.venv/bin:$PATH"
lanes=()
case "${rest[*]}" in --slow | "--slow --long") lanes=(python scripts/lanes.py) ;; esac
if [ "$lint" = yes ]; then
    ruff check .
    ruff format --check --quiet . || { ruff format --check . | tail -20; exit 1; }
    if [ ${#lanes[@]} = 0 ]; then mypy; else lanes+=(--types); fi
fi
if [ ${#lanes[@]} != 0 ]; then exec "${lanes[@]}" "${rest[@]}"; fi
exec python -m pytest "${rest[@]}"
