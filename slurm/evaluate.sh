#!/usr/bin/env bash
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
# Recalls of a finished run on the test split.
#   CHECKPOINT=runs/finetune-coco/stage2 bash slurm/evaluate.sh [--dry-run] [options of tagsds-evaluate]
ROOT=${TAGSDS_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
[ -f "$ROOT/slurm/lib.sh" ] || ROOT=${SLURM_SUBMIT_DIR:-$PWD} # under sbatch this file is a copy: submit from the repository
# shellcheck source=slurm/lib.sh
. "$ROOT/slurm/lib.sh" || { echo "error: $ROOT is not the repository; submit from its folder." >&2; exit 2; }
SCRIPT=evaluate.sh NAME=${NAME:-evaluate}
begin "$@"
export CHECKPOINT=${CHECKPOINT:-$RUNS/finetune-coco/stage2}
EVALUATION=${ARGS[*]-}

"$PYTHON" -m tagsds.preflight --checkpoint "$CHECKPOINT" --data "$DATA" --split test --ranks "$RANKS" || exit $?
if submits; then
  options_of_ranks
  submit evaluate "" "${ARGS[@]}"
  [ -z "$DRY" ] || say "in this job:"
fi
if [ -n "$DRY" ] || ! submits; then evaluate "$CHECKPOINT"; fi
