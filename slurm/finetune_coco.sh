#!/usr/bin/env bash
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
# TAGS-DC on COCO: stage 1, stage 2 from its step 2000, recalls on the test split.
#   bash slurm/finetune_coco.sh [--dry-run] [key=value ...]     or     sbatch slurm/finetune_coco.sh [key=value ...]
ROOT=${TAGSDS_ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
[ -f "$ROOT/slurm/lib.sh" ] || ROOT=${SLURM_SUBMIT_DIR:-$PWD} # under sbatch this file is a copy: submit from the repository
# shellcheck source=slurm/lib.sh
. "$ROOT/slurm/lib.sh" || { echo "error: $ROOT is not the repository; submit from its folder." >&2; exit 2; }
SCRIPT=finetune_coco.sh NAME=${NAME:-finetune-coco}
STAGE1=${STAGE1:-tags-base-coco} STAGE2=${STAGE2:-tagsdc-base-coco} STAGE1_EXPORT=${STAGE1_EXPORT:-export-step2000}
EVALUATION=${EVALUATION---coco-folds}
begin "$@"
. slurm/finetune.sh
finetune
