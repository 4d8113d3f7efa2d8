#!/usr/bin/env bash
# Trains zoo/digits with torch through two boxes over RDMA, in the guest: by hand. It takes some twenty
# minutes of emulation, most of them for the minibatches, of 32 on two workers; test accuracy 0.95.
#   usage: bash scripts/rdma_vm/digits.sh [MINIBATCHES] [more settings of dlp train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec bash scripts/rdma_vm/run.sh --limit "${RDMA_VM_LIMIT:-2400}" dlp train task=zoo/digits rule=asgd \
    task.blocks=1 task.augment=false task.dropout=0.2 task.lr=5e-3 task.batch_size=32 workers=2 boxes=2 \
    cluster.transport=verbs cluster.timeout_s=600 run.extras=false run.progress=plain \
    run.minibatches="${1:-100}" run.eval_every="${1:-100}" run.dir=/run/digits "${@:2}"
