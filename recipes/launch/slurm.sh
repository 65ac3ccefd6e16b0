#!/usr/bin/env bash
# Four machines of 8 GPUs: sbatch recipes/launch/slurm.sh my.yaml --out /shared/runs/a
# After a preemption or a machine failure the job is requeued and continues from its last checkpoint.
#SBATCH --job-name=stipule
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@600  # seconds before the end: more than a step takes, so that it is finished and saved
set -euo pipefail
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540  # seconds until torchrun kills a process after SIGTERM; 30 before torch 2.13
export ACCELERATE_USE_FSDP=true FSDP_VERSION=2 FSDP_RESHARD_AFTER_FORWARD=true  # leave out to keep the whole model on each GPU
again=()
[[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]] && again=(--resume)
exec srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node 8 \
  --rdzv_backend c10d --rdzv_endpoint "$MASTER_ADDR:29500" --rdzv_id "$SLURM_JOB_ID" \
  -m stipule train "$@" "${again[@]}"
