#!/usr/bin/env bash
# One SLURM job for 1, 8 or 64 x 8 GPUs, that saves and comes back when it is preempted, runs out of time or loses a
# node. Everything behind the file's name goes to `lit-cpt fit`:
#
#   sbatch --nodes 1  --ntasks-per-node 1 --gpus-per-node 1 slurm.sh --config base --config run.yaml --run /shared/run
#   sbatch --nodes 1  --ntasks-per-node 8 --gpus-per-node 8 slurm.sh ...
#   sbatch --nodes 64 --ntasks-per-node 8 --gpus-per-node 8 slurm.sh ...
#
# --run must lie where every node sees it. Partition, account and --time go on sbatch's command line.
#SBATCH --job-name=lit-cpt
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
# ^ this script hears TERM 300 seconds before the job's time is up; a checkpoint must fit into that time.
set -uo pipefail
: "${SLURM_NTASKS_PER_NODE:?start this with sbatch --nodes N --ntasks-per-node GPUS --gpus-per-node GPUS}"
RESTARTS="${RESTARTS:-20}"  # how often the job may come back

back() {  # the same job again; `--ckpt_path auto` goes on from the newest whole checkpoint
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$RESTARTS" ]; then
    echo "slurm.sh: started again $RESTARTS times already; RESTARTS=N allows more." >&2
    exit 1
  fi
  scontrol requeue "$SLURM_JOB_ID"
}

saved() {  # TERM: every rank finishes its step and saves
  trap '' TERM
  kill -TERM "$ranks"
  wait "$ranks"
  back
  exit 0
}

# A rank a GPU. When one dies, --kill-on-bad-exit ends the others instead of letting them wait.
srun --kill-on-bad-exit=1 lit-cpt fit "$@" --trainer.num_nodes "$SLURM_JOB_NUM_NODES" \
  --trainer.devices "$SLURM_NTASKS_PER_NODE" --ckpt_path auto &
ranks=$!
trap saved TERM
wait "$ranks"
status=$?
case "$status" in
  0 | 2) exit "$status" ;;  # done, or the input is wrong: again would be in vain
  *) back && exit "$status" ;;
esac
