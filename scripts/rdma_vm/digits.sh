#!/usr/bin/env bash
# Trains zoo/digits with torch through two boxes over RDMA, in the guest: by hand, it takes minutes
# (an emulated processor needs one to import torch).
#   usage: bash scripts/rdma_vm/digits.sh [MINIBATCHES] [more settings of dlp train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec bash scripts/rdma_vm/run.sh --limit "${RDMA_VM_LIMIT:-1800}" dlp train task=zoo/digits rule=asgd \
    workers=2 boxes=2 cluster.transport=verbs cluster.timeout_s=600 run.progress=plain \
    run.minibatches="${1:-8}" run.eval_every="${1:-8}" "${@:2}"
