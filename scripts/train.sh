#!/usr/bin/env bash
# From an empty machine to a trained network: sets up once, then trains the handwritten-digit CNN
# with mpirun, four workers and two memory boxes. Further settings may follow: seed=1 run=quick ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/dlp train task=zoo/digits rule=hybrid workers=4 boxes=2 launcher=mpirun "$@"
