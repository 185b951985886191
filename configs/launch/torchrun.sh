#!/usr/bin/env bash
# Machines without a scheduler: run this on each of them. Everything behind the file's name goes to `lit-cpt fit`:
#
#   GPUS=8 ./torchrun.sh --config base --config run.yaml --run runs/first              # one machine
#   NODES=4 HEAD=node0 GPUS=8 ./torchrun.sh ... --run /shared/run                      # the same on each of four
#
# When a rank dies, all are started again, RESTARTS times, and go on from the newest whole checkpoint. On TERM or
# Ctrl-C they have SAVING seconds to finish their step and save.
set -euo pipefail
NODES="${NODES:-1}" GPUS="${GPUS:-1}" HEAD="${HEAD:-localhost}" PORT="${PORT:-29400}" RESTARTS="${RESTARTS:-3}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${SAVING:-300}"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else ranks started again find the addresses of those that are gone

exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts "$RESTARTS" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id lit-cpt \
  -m -- lit_cpt fit "$@" --trainer.num_nodes "$NODES" --trainer.devices "$GPUS" --ckpt_path auto
