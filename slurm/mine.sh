#!/usr/bin/env bash
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
# Offline hard negatives (AOQ) by a trained matcher.
#   CHECKPOINT=runs/vsrn bash slurm/mine.sh [--dry-run] [options of tagsds-mine]
ROOT=${TAGSDS_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
[ -f "$ROOT/slurm/lib.sh" ] || ROOT=${SLURM_SUBMIT_DIR:-$PWD} # under sbatch this file is a copy: submit from the repository
# shellcheck source=slurm/lib.sh
. "$ROOT/slurm/lib.sh" || { echo "error: $ROOT is not the repository; submit from its folder." >&2; exit 2; }
SCRIPT=mine.sh NAME=${NAME:-mine}
begin "$@"
export CHECKPOINT=${CHECKPOINT:-$RUNS/vsrn}
CANDIDATES=$DATA/candidates/$(basename "$CHECKPOINT")

"$PYTHON" -m tagsds.preflight --checkpoint "$CHECKPOINT" --data "$DATA" --split train --ranks "$RANKS" || exit $?
if submits; then
  options_of_ranks
  submit mine "" "${ARGS[@]}"
  [ -z "$DRY" ] || say "in this job:"
fi
if [ -n "$DRY" ] || ! submits; then
  launch "$CANDIDATES" "$HOME_OF/logs" "$PYTHON" -m tagsds.mine --checkpoint "$CHECKPOINT" --data "$DATA" --output "$CANDIDATES" "${ARGS[@]}"
fi
