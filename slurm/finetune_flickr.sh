#!/usr/bin/env bash
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
# TAGS-DC on Flickr30K: stage 1, stage 2 from its step 2000, recalls on the test split.
#   bash slurm/finetune_flickr.sh [--dry-run] [key=value ...]     or     sbatch slurm/finetune_flickr.sh [key=value ...]
ROOT=${TAGSDS_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
[ -f "$ROOT/slurm/lib.sh" ] || ROOT=${SLURM_SUBMIT_DIR:-$PWD} # under sbatch this file is a copy: submit from the repository
# shellcheck source=slurm/lib.sh
. "$ROOT/slurm/lib.sh" || { echo "error: $ROOT is not the repository; submit from its folder." >&2; exit 2; }
SCRIPT=finetune_flickr.sh NAME=${NAME:-finetune-flickr}
GIVEN=${DATA-}
STAGE1=${STAGE1:-tags-base-flickr} STAGE2=${STAGE2:-tagsdc-base-flickr} STAGE1_EXPORT=${STAGE1_EXPORT:-export-step2000}
EVALUATION=${EVALUATION-}
begin "$@"
export DATA=${GIVEN:-$FLICKR}
. slurm/finetune.sh
finetune
