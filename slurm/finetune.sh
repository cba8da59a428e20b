# Stage 1 (TAGS), stage 2 (TAGS-DC) from one of its exports, evaluation: what finetune_coco.sh and finetune_flickr.sh share.
# shellcheck shell=bash disable=SC2154
export STAGE1 STAGE2 STAGE1_EXPORT EVALUATION

# settings_of stage1|stage2: the key=value arguments that hold for it; `stage1:key=value` holds for one stage alone
settings_of() {
  local argument
  SETTINGS=()
  for argument in "${ARGS[@]}"; do
    case $argument in
      "$1":*) SETTINGS+=("${argument#*:}") ;;
      stage1:* | stage2:*) ;;
      *) SETTINGS+=("$argument") ;;
    esac
  done
}

stage1() { # stage1 FUNCTION OPTIONS...: call it with stage 1's recipe, run and settings
  settings_of stage1
  "$1" "$STAGE1" "$HOME_OF/stage1" "${@:2}" ${INIT:+"init=$INIT"} "${SETTINGS[@]}"
}

stage2() {
  settings_of stage2
  "$1" "$STAGE2" "$HOME_OF/stage2" "${@:2}" "init=$HOME_OF/stage1/$STAGE1_EXPORT" "${SETTINGS[@]}"
}

check_chain() {
  stage1 preflight --exports "$STAGE1_EXPORT" --split test
  stage2 preflight --init-later
  stage1 estimate
  settings_of stage2 # its init is not there yet; the sizes are those of stage 1's
  estimate "$STAGE2" "$HOME_OF/stage2" ${INIT:+"init=$INIT"} "${SETTINGS[@]}"
}

followers() { # stage 2 waits for this job's last end, the evaluation for stage 2's
  submit stage2 "afterok:${SLURM_JOB_ID:-<this job>}" "${ARGS[@]}"
  submit evaluate "afterok:$SUBMITTED" "${ARGS[@]}"
}

finetune() {
  options_of_ranks
  if [ -n "$DRY" ]; then
    check_chain
    submit stage1 "" "${ARGS[@]}"
    followers
    say "in these jobs:"
    stage1 train
    stage2 train
    evaluate "$HOME_OF/stage2"
    return
  fi
  if submits; then
    check_chain
    submit stage1 "" "${ARGS[@]}"
    return
  fi
  case $PART in
    first | stage1)
      [ -f "$HOME_OF/logs/jobs-after-$SLURM_JOB_ID" ] || check_chain
      once followers
      stage1 train
      ;;
    stage2)
      stage2 preflight
      stage2 train
      ;;
    evaluate) evaluate "$HOME_OF/stage2" ;;
  esac
}
