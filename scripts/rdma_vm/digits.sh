#!/usr/bin/env bash
# Trains zoo/digits with torch through two boxes over RDMA, in the guest: by hand. On a busy machine it
# takes five minutes until torch is imported and six seconds a minibatch of 16, on two workers. The
# default is long enough for a test accuracy of 0.95 (over shm, on a real processor).
#   usage: bash scripts/rdma_vm/digits.sh [MINIBATCHES] [more settings of dlp train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec bash scripts/rdma_vm/run.sh --limit "${RDMA_VM_LIMIT:-2400}" dlp train task=zoo/digits rule=asgd \
    task.blocks=1 task.augment=false task.dropout=0.2 task.lr=5e-3 workers=2 boxes=2 \
    cluster.transport=verbs cluster.timeout_s=600 run.extras=false run.progress=plain \
    run.minibatches="${1:-140}" run.eval_every="${1:-140}" run.dir=/run/digits "${@:2}"
