#!/usr/bin/env bash
# Two processes on a CPU, one core each: cpu2.sh my.yaml --out runs/a
# (`accelerate launch --cpu --num_processes 2` would start one process, without a warning.)
set -euo pipefail
export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
exec torchrun --nproc_per_node 2 -m stipule train "$@"
