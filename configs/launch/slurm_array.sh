#!/usr/bin/env bash
# A grid of `lit-cpt ablate` as an array of SLURM jobs, each of which saves and comes back when it is preempted or runs
# out of time. Everything behind the file's name goes to `lit-cpt ablate`:
#
#   sbatch --array 0-3 --gpus-per-node 1 slurm_array.sh grid.yaml --output /shared/lab
#
# How many tasks are of use tells lit-cpt ablate grid.yaml --plan. --output must lie where every node sees it. To go on
# with what failed, submit the same array again, whole: a part of it would be dealt the arms of all. Partition, account
# and --time go on sbatch's command line.
#SBATCH --job-name=lit-cpt-ablate
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
# ^ this script hears TERM 300 seconds before the job's time is up; a checkpoint must fit into that time.
set -uo pipefail
: "${SLURM_ARRAY_TASK_ID:?start this with sbatch --array 0-N}"
RESTARTS="${RESTARTS:-20}"  # how often a task may come back

saved() {  # TERM: every arm finishes its step and saves; then the same task again
  trap '' TERM
  kill -TERM "$!"
  wait "$!"
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$RESTARTS" ]; then
    echo "slurm_array.sh: started again $RESTARTS times already; RESTARTS=N allows more." >&2
    exit 1
  fi
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

trap saved TERM
lit-cpt ablate "$@" --task "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT" &
wait "$!"
