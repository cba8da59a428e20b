#!/usr/bin/env bash
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
# A corpus packed by a job array, a slice of the shards a task, and merged by a job that waits for all of them.
#   DATA=shards/coco bash slurm/pack.sh [--dry-run] SOURCE [options of tagsds-pack, without --out]
ROOT=${TAGSDS_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
[ -f "$ROOT/slurm/lib.sh" ] || ROOT=${SLURM_SUBMIT_DIR:-$PWD} # under sbatch this file is a copy: submit from the repository
# shellcheck source=slurm/lib.sh
. "$ROOT/slurm/lib.sh" || { echo "error: $ROOT is not the repository; submit from its folder." >&2; exit 2; }
SCRIPT=pack.sh NAME=${NAME:-pack}
begin "$@"
GPUS_PER_NODE=0
pack=("$PYTHON" -m preprocess.pack "${ARGS[@]}" --out "$DATA" --workers "$PACK_CPUS")

work() { # work OPTIONS...: in this job, so that signals reach it
  if [ -n "$DRY" ]; then show "${pack[@]}" "$@"; return; fi
  attend "${pack[@]}" "$@"
  conclude $? "$DATA" "$HOME_OF/logs/$SLURM_JOB_ID"
}

if [ "$PART" = first ] || [ -n "$DRY" ]; then
  "${pack[@]}" --check || exit $?
  OPTIONS=(--nodes=1 --ntasks=1 --cpus-per-task="$PACK_CPUS")
  [ -z "$PACK_PARTITION" ] || OPTIONS+=(--partition="$PACK_PARTITION")
  merge=("${OPTIONS[@]}")
  OPTIONS+=(--array="1-$SLICES")
  submit slice "" "${ARGS[@]}"
  OPTIONS=("${merge[@]}")
  submit merge "afterok:$SUBMITTED" "${ARGS[@]}"
  [ -n "$DRY" ] || exit 0
  say "in these jobs:"
fi
[ "$PART" = merge ] || work --slice "${SLURM_ARRAY_TASK_ID:-1}/$SLICES"
if [ "$PART" = merge ] || [ -n "$DRY" ]; then work --merge; fi
