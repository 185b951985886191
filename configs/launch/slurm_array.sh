#!/usr/bin/env bash
# A grid of `lit-cpt ablate` as an array of SLURM jobs, each of which saves and comes back when it is preempted or runs
# out of time. Everything behind the file's name goes to `lit-cpt ablate`:
#
#   sbatch --array 0-3 --gpus-per-node 1 slurm_array.sh grid.yaml --output /shared/lab
#
# More tasks than the plan tells trees (lit-cpt ablate grid.yaml --plan) are of no use. --output must lie where every
# node sees it. Partition, account and --time go on sbatch's command line.
#SBATCH --job-name=lit-cpt-ablate
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
# ^ this script hears TERM 300 seconds before the job's time is up; a checkpoint must fit into that time.
set -uo pipefail
: "${SLURM_ARRAY_TASK_ID:?start this with sbatch --array 0-N}"

saved() {  # TERM: every arm finishes its step and saves; then the same task again
  trap '' TERM
  kill -TERM "$arms"
  wait "$arms"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

lit-cpt ablate "$@" --task "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT" &
arms=$!
trap saved TERM
wait "$arms"
