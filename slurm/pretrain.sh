#!/usr/bin/env bash
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
# One run of one recipe: UNITER's pre-training, or with RECIPE and NAME anything else.
#   bash slurm/pretrain.sh [--dry-run] [key=value ...]     RECIPE=vsrn-coco NAME=vsrn GPUS_PER_NODE=1 bash slurm/pretrain.sh
ROOT=${TAGSDS_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
[ -f "$ROOT/slurm/lib.sh" ] || ROOT=${SLURM_SUBMIT_DIR:-$PWD} # under sbatch this file is a copy: submit from the repository
# shellcheck source=slurm/lib.sh
. "$ROOT/slurm/lib.sh" || { echo "error: $ROOT is not the repository; submit from its folder." >&2; exit 2; }
SCRIPT=pretrain.sh NAME=${NAME:-pretrain}
export RECIPE=${RECIPE:-published-pretrain-base}
begin "$@"
settings=(${INIT:+"init=$INIT"} "${ARGS[@]}")

[ -n "${SLURM_RESTART_COUNT:-}" ] || { # a requeued job was checked before
  preflight "$RECIPE" "$HOME_OF" "${settings[@]}"
  estimate "$RECIPE" "$HOME_OF" "${settings[@]}"
}
if submits; then
  options_of_ranks
  submit train "" "${ARGS[@]}"
  [ -z "$DRY" ] || say "in this job:"
fi
if [ -n "$DRY" ] || ! submits; then train "$RECIPE" "$HOME_OF" "${settings[@]}"; fi
