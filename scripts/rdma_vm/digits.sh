#!/usr/bin/env bash
# Trains zoo/digits with torch through two boxes over RDMA, in the guest: by hand, it takes some
# twenty minutes. An emulated processor needs one minute to import torch and one second for each digit
# that the convolutional network looks at; the recurrent one is twenty times as cheap. Torch that was
# imported before a fork ends in a segmentation fault there, so no worker is forked (DLP_FORK=0).
#   usage: bash scripts/rdma_vm/digits.sh [MINIBATCHES] [more settings of dlp train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec bash scripts/rdma_vm/run.sh --limit "${RDMA_VM_LIMIT:-2400}" env DLP_FORK=0 dlp train task=zoo/digits rule=asgd \
    task.net=lstm task.lr=5e-3 workers=2 boxes=2 cluster.transport=verbs cluster.timeout_s=600 \
    run.extras=false run.progress=plain run.minibatches="${1:-40}" run.eval_every="${1:-40}" run.dir=/run/digits "${@:2}"
