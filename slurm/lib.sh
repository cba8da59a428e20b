# What the scripts of this folder share; slurm/README.md says how they are used.
#
# A script is run three times over: on the login node (it checks, then submits itself), by SLURM (it checks, submits what depends on
# it, then works), and by SLURM again after each requeue (it goes on). TAGSDS_PART says which part of a chain of jobs it is.
# Options that env.sh holds as words (SBATCH_MORE, GPU_OPTIONS, ...) are split on purpose.
# shellcheck shell=bash disable=SC1090,SC1091,SC2034,SC2086,SC2153,SC2206
set -uo pipefail

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
show() { printf '   '; printf ' %q' "$@"; echo; }

# begin ARGUMENTS...: settings, and the arguments without --dry-run in ARGS
begin() {
  cd "$ROOT" || fail "the repository $ROOT is not there."
  set -a # a job is given the values that were checked, whatever happens to env.sh in the meantime
  . slurm/env.sh
  set +a
  local argument
  DRY='' ARGS=()
  for argument; do
    if [ "$argument" = --dry-run ]; then DRY=1; else ARGS+=("$argument"); fi
  done
  eval "$ACTIVATE" || fail "ACTIVATE='$ACTIVATE' failed; correct it in slurm/env.sh."
  command -v "$PYTHON" > /dev/null || fail "$PYTHON is not there; set ACTIVATE or PYTHON in slurm/env.sh."
  PART=${TAGSDS_PART:-first}
  RANKS=$((NODES * TASKS_PER_NODE))
  HOME_OF=$RUNS/$NAME
  CPU=()
  [ "$GPUS_PER_NODE" != 0 ] || { CPU=(--cpu); export DS_ACCELERATOR=cpu; }
  # what a surrounding launcher left; with LOCAL_SIZE DeepSpeed would take the ranks of all nodes for those of one
  unset RANK LOCAL_RANK WORLD_SIZE LOCAL_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
  WATCHED='' SIGNALLED='' INTERRUPTED=''
  trap on_signal USR1 TERM
}

in_job() { [ -n "${SLURM_JOB_ID:-}" ] && [ "${SLURM_JOB_NAME:-}" != interactive ] && [ -z "${SLURM_STEP_ID:-}" ] && [ -z "$DRY" ]; }

# Whether this job has what env.sh asks for; `sbatch slurm/x.sh` alone asks for nothing.
fits() {
  [ "${SLURM_JOB_NUM_NODES:-0}" = "$NODES" ] && [ "${SLURM_CPUS_ON_NODE:-0}" -ge $((TASKS_PER_NODE * CPUS_PER_TASK)) ] &&
    { [ "$GPUS_PER_NODE" = 0 ] || [ "${SLURM_GPUS_ON_NODE:-0}" -ge "$GPUS_PER_NODE" ]; }
}

# Whether to submit rather than to work: on the login node, or where SLURM gave this script less than env.sh asks for.
submits() { ! in_job || { [ -z "${TAGSDS_SUBMITTED:-}" ] && ! fits; }; }

# ---------------------------------------------------------------------------------------------------------------- checks

# preflight RECIPE RUN [options and key=value ...]: ends the script with the sentence that Python says
preflight() {
  local recipe=$1 run=$2
  shift 2
  "$PYTHON" -m tagsds.preflight --recipe "$recipe" --data "$DATA" --output "$run" --deepspeed_config "$DS_CONFIG" \
    --ranks "$RANKS" "${CPU[@]}" "$@" || exit $?
}

# estimate RECIPE RUN [key=value ...]: memory of a rank, disk, hours; ends the script where a GPU of GPU_GIB is too small
estimate() {
  local recipe=$1 run=$2
  shift 2
  [ "$ESTIMATE" != no ] || return 0
  local limit=()
  [ "$GPUS_PER_NODE" = 0 ] || [ -z "$GPU_GIB" ] || limit=(--gpu-gib "$GPU_GIB")
  [ -z "$TFLOPS" ] || limit+=(--tflops "$TFLOPS")
  "$PYTHON" -m tagsds.train --recipe "$recipe" --data "$DATA" --output "$run" --deepspeed_config "$DS_CONFIG" \
    --estimate "${limit[@]}" --ranks "$RANKS" "$@" || exit $?
}

# ------------------------------------------------------------------------------------------------------------ submission

# submit PART DEPENDENCY ARGUMENTS...: this script as another job; its number in SUBMITTED. OPTIONS: what it asks of SLURM
submit() {
  local part=$1 dependency=$2 name clean=(env) asked
  shift 2
  for name in ${!SLURM_@}; do # nothing of this job's, such as the count of its restarts, goes into the other
    [ "$name" = SLURM_CONF ] || clean+=(-u "$name")
  done
  asked=(--parsable --job-name="$NAME-$part" --time="$TIME_LIMIT" --output="$HOME_OF/logs/%x-%j.log" --open-mode=append --requeue
    --signal="B:USR1@$SIGNAL_SECONDS")
  [ -z "$ACCOUNT" ] || asked+=(--account="$ACCOUNT")
  [ -z "$dependency" ] || asked+=(--dependency="$dependency" --kill-on-invalid-dep=yes)
  asked+=("${OPTIONS[@]}" $SBATCH_MORE "slurm/$SCRIPT" "$@")
  if [ -n "$DRY" ]; then
    show TAGSDS_PART="$part" sbatch "${asked[@]}"
    SUBMITTED="<job of $NAME-$part>"
    return
  fi
  mkdir -p "$HOME_OF/logs"
  SUBMITTED=$("${clean[@]}" TAGSDS_PART="$part" NAME="$NAME" TAGSDS_ROOT="$ROOT" TAGSDS_SUBMITTED=1 sbatch "${asked[@]}") ||
    fail "sbatch refused job $NAME-$part; its message is above."
  SUBMITTED=${SUBMITTED%%;*}
  say "job $SUBMITTED: $NAME-$part${dependency:+ ($dependency)}, log $HOME_OF/logs/$NAME-$part-$SUBMITTED.log"
}

# What a job of RANKS ranks asks for.
options_of_ranks() {
  OPTIONS=(--nodes="$NODES" --ntasks-per-node="$TASKS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK")
  [ "$GPUS_PER_NODE" = 0 ] || OPTIONS+=(--gpus-per-node="$GPUS_PER_NODE")
  [ -z "$PARTITION" ] || OPTIONS+=(--partition="$PARTITION")
}

# once FUNCTION: call it unless this job, before a requeue, has; it notes the jobs that it submits in JOBS
once() {
  JOBS=$HOME_OF/logs/jobs-after-${SLURM_JOB_ID:-none}
  if [ -n "$DRY" ]; then "$@"; return; fi
  [ ! -f "$JOBS" ] || return 0
  mkdir -p "$HOME_OF/logs"
  "$@" && echo "$SUBMITTED" > "$JOBS"
}

# ------------------------------------------------------------------------------------------------------------------ work

on_signal() { # passed on at once: a trap runs while `wait` waits, not while a command does
  SIGNALLED=1 INTERRUPTED=1
  [ -z "$WATCHED" ] || kill -USR1 "$WATCHED" 2> /dev/null
}

# attend COMMAND...: run it so that signals reach it; returns its status
attend() {
  local status
  if [ -n "$SIGNALLED" ]; then return 138; fi # told to leave during the checks
  "$@" &
  WATCHED=$!
  while :; do
    INTERRUPTED=''
    wait "$WATCHED"
    status=$?
    [ -n "$INTERRUPTED" ] || break
  done
  WATCHED=''
  return "$status"
}

# launch WORK LOGS COMMAND...: one task a rank, the log of rank R in LOGS/JOB-RESTART-rankR.log; then `conclude`. What the command
# has done so far lies in WORK
launch() {
  local work=$1 logs=$2 address port restart=${SLURM_RESTART_COUNT:-0} options status
  shift 2
  options=(--nodes="$NODES" --ntasks="$RANKS" --ntasks-per-node="$TASKS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" $CPU_OPTIONS)
  [ "$GPUS_PER_NODE" = 0 ] || options+=($GPU_OPTIONS)
  # Ranks that leave with status 75 do so one after the other: the first one's end must not kill the others, a minute later it may.
  options+=(--kill-on-bad-exit=0 --wait="$END_AFTER" $SRUN_MORE)
  if [ -n "$DRY" ]; then
    show srun "${options[@]}" --output="$logs/%j-$restart-rank%t.log" "$@"
    return
  fi
  address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  port=$((20000 + (SLURM_JOB_ID * 17 + restart * 5) % 12000)) # this script runs on the first node
  while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do port=$((port + 1)); done
  mkdir -p "$logs"
  logs=$logs/$SLURM_JOB_ID-$restart
  : > "$logs-begin"
  say "$(date '+%F %T') $RANKS rank(s) on $SLURM_JOB_NODELIST, restart $restart, logs $logs-rank*.log: $*"
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS_PER_TASK} MASTER_ADDR=$address MASTER_PORT=$port TQDM_MININTERVAL=30 \
    attend srun "${options[@]}" --output="$logs-rank%t.log" "$@" 2>> "$logs-srun.log"
  status=$?
  cat "$logs-srun.log" 2> /dev/null
  if [ "$status" = 0 ]; then
    say "$(date '+%F %T') done; the end of $logs-rank0.log:"
    tr '\r' '\n' < "$logs-rank0.log" | tail -n 15
  else
    forget_locks "$logs-begin"
  fi
  # the buffers of ranks that were killed at their start (DeepSpeed on CPUs)
  rm -f "/dev/shm/deepspeed_allreduce_buffer_${UID}_${address}_${port}_"*
  conclude "$status" "$work" "$logs"
}

# forget_locks FILE: DeepSpeed's operators are compiled under a lock file, which a rank that is killed meanwhile leaves behind. Those
# made since FILE go; the trainer itself would wait a quarter of an hour before it takes such a lock for a dead one's
forget_locks() {
  find "${TORCH_EXTENSIONS_DIR:-$HOME/.cache/torch_extensions}" -mindepth 2 -maxdepth 3 -name lock -type f -newer "$1" -delete 2> /dev/null
}

# conclude STATUS WORK LOGS: returns where the work is done; requeues where it was interrupted; else names the culprit and ends
conclude() {
  local status=$1 work=$2 logs=$3 state
  [ "$status" != 0 ] || return 0
  sleep 1 # a node's failure and a cancellation are known to the controller a little later than here
  state=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
  if [ "$state" != RUNNING ]; then
    say "$(date '+%F %T') the job is ${state:-gone} (status $status): SLURM decides what comes next"
    exit "$status"
  fi
  if [ "$status" = 75 ] || { [ -n "$SIGNALLED" ] && { [ "$status" = 138 ] || [ "$status" = 143 ]; }; }; then
    requeue "interrupted (status $status)" "$work" "$logs"
  fi
  blame "$status" "$logs"
  nodes_answer || requeue "a node of $SLURM_JOB_NODELIST does not answer" "$work" "$logs"
  exit "$status"
}

# Whether each node still starts a task: the controller may notice minutes later that one is lost.
nodes_answer() {
  timeout 60 srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 \
    --output=none true
}

# requeue WHY WORK LOGS: this job again, which goes on where it was; not for ever where it gets nowhere
requeue() {
  local why=$1 work=$2 note progress before idle=0
  note=$(dirname "$3")/$SLURM_JOB_ID-progress
  progress=$(cat "$work/checkpoints/latest" 2> /dev/null; find "$work/parts" "$work/.journal" -type f 2> /dev/null | wc -l)
  if [ -f "$note" ]; then
    before=$(tail -n +2 "$note")
    [ "$before" != "$progress" ] || idle=$(($(head -n 1 "$note") + 1))
  fi
  printf '%s\n%s\n' "$idle" "$progress" > "$note"
  [ "$idle" -lt 3 ] || fail "$work got no further in three starts; raise TIME_LIMIT, or let it save more often (log.checkpoint_every)."
  say "$(date '+%F %T') $why: job $SLURM_JOB_ID is requeued and goes on where it was"
  scontrol requeue "$SLURM_JOB_ID" || fail "job $SLURM_JOB_ID could not be requeued; submit the same command again, it goes on."
  sleep 60 # SLURM ends the script here
  exit 75
}

# blame STATUS LOGS: the last lines of the rank that failed first
blame() {
  local status=$1 logs=$2 log first='' later='' rank
  if ! ls "$logs"-rank*.log > /dev/null 2>&1; then
    say "FAILED with status $status; its message is above"
    return
  fi
  while IFS= read -r log; do # the log that ends first comes first
    grep -qE '^error:|Traceback|[Nn]on-finite|[Oo]ut of memory' "$log" || continue
    # a rank whose neighbour died complains about the connection
    if grep -qE 'Connection (closed|reset|refused)|Broken pipe|remote process exited|NCCL.*(abort|timeout|timed out)' "$log"; then
      later=${later:-$log}
    else
      first=$log
      break
    fi
  done < <(ls -tr "$logs"-rank*.log)
  first=${first:-$later}
  if [ -z "$first" ]; then # killed without a word: the task that srun names first
    rank=$(sed -nE 's/.*tasks? ([0-9]+).*(Exited|Killed|Segmentation|Aborted|Out Of Memory|Bus error|Terminated).*/\1/p' "$logs-srun.log" | head -n 1)
    [ -z "$rank" ] || [ ! -f "$logs-rank$rank.log" ] || first=$logs-rank$rank.log
  fi
  if [ -z "$first" ]; then
    say "FAILED with status $status; no rank left an error, see $logs-rank*.log"
    return
  fi
  log=${first##*-rank}
  say "FAILED with status $status; rank ${log%.log} failed first, the end of $first:"
  tr '\r' '\n' < "$first" | tail -n 25
}

# train RECIPE RUN [key=value ...]: from the last checkpoint, if there is one
train() {
  local recipe=$1 run=$2
  shift 2
  launch "$run" "$run/logs" "$PYTHON" -m tagsds.train --deepspeed_config "$DS_CONFIG" --recipe "$recipe" --data "$DATA" --output "$run" --resume "$@"
}

# evaluate RUN: on the test split, with the options in EVALUATION
evaluate() {
  launch "$1" "$1/logs" "$PYTHON" -m tagsds.evaluate --checkpoint "$1" --data "$DATA" --split test $EVALUATION
}
