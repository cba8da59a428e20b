#!/usr/bin/env bash
# A SLURM of several virtual nodes on this machine, for tests: as root, without systemd, everything in one folder.
#
#   cluster.sh up FOLDER NODES PORT     controller on PORT, node i on PORT + i; writes FOLDER/slurm.conf
#   cluster.sh pull FOLDER NODE         the plug of a node is pulled: all its processes are killed at once
#   cluster.sh start FOLDER NODE        its daemon again
#   cluster.sh down FOLDER
#
# A node is a slurmd in name spaces of its own: its host name is the node's, and so is its /etc/hosts. Its processes are those that
# share its UTS name space.
set -euo pipefail
command=${1:?up, pull, start or down} folder=$(realpath -m "${2:?folder}")
export SLURM_CONF=$folder/slurm.conf
prefix=tagsds-node

alive() { [ -d "/proc/$1" ] && [ "$(ps -o stat= -p "$1" | cut -c1)" != Z ]; }

end() { # end PID: asked first
  local i
  alive "$1" || return 0
  kill "$1" 2>/dev/null || return 0
  for ((i = 0; i < 50; i++)); do alive "$1" || return 0; sleep 0.1; done
  kill -9 "$1" 2>/dev/null || true
}

processes() { # processes NODE: the numbers of all processes on it
  local space process
  space=$(cat "$folder/run/$1.space" 2> /dev/null) || return 0 # remembered, since slurmstepd outlives the daemon
  for process in /proc/[0-9]*; do
    [ "$(readlink "$process/ns/uts" 2>/dev/null)" != "$space" ] || echo "${process#/proc/}"
  done
}

start() { # start NODE
  local node=$1 i
  # shellcheck disable=SC2016
  setsid unshare --uts --mount --propagation private sh -c \
    'hostname "$1"; mount --bind "$2" /etc/hosts; exec slurmd -D -N "$1"' sh "$node" "$folder/hosts" \
    > "$folder/log/$node.out" 2>&1 < /dev/null &
  echo $! > "$folder/run/$node.pid"
  for ((i = 0; i < 50; i++)); do # once it has left this one's
    readlink "/proc/$!/ns/uts" > "$folder/run/$node.space" || true
    [ "$(cat "$folder/run/$node.space")" = "$(readlink /proc/self/ns/uts)" ] || return 0
    sleep 0.05
  done
}

ready() { # ready COUNT: wait until so many nodes are idle
  local i
  for ((i = 0; i < 200; i++)); do
    [ "$(sinfo -h -N -o '%T' 2>/dev/null | grep -cx idle)" != "$1" ] || return 0
    sleep 0.1
  done
  sinfo -N -l >&2 || true
  tail -n 5 "$folder"/log/* >&2
  return 1
}

up() {
  local nodes=$1 port=$2 host i
  host=$(hostname -s)
  mkdir -p "$folder"/{munge,run,log,state}
  chmod 755 "$folder" "$folder/run"
  chmod 700 "$folder/munge"
  head -c 128 /dev/urandom > "$folder/munge/key"
  chmod 400 "$folder/munge/key"
  cp /etc/hosts "$folder/hosts"
  echo >> "$folder/hosts"
  for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$folder/spool/$prefix$i"
    echo "127.0.1.$((20 + i)) $prefix$i" >> "$folder/hosts"
  done
  # proctrack/linuxproc and task/none need no cgroups. cred_expire and the scheduler's intervals: a requeued job starts again after
  # seconds instead of two minutes.
  cat > "$SLURM_CONF" <<CONF
ClusterName=tagsds-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MailProg=/bin/true
NodeName=${prefix}[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1))-$((port + nodes)) CPUs=64 Sockets=1 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=500000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
CONF
  munged --key-file="$folder/munge/key" --socket="$folder/run/munge.socket" --pid-file="$folder/run/munged.pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --num-threads=2
  setsid slurmctld -D -i > "$folder/log/slurmctld.out" 2>&1 < /dev/null &
  echo $! > "$folder/run/controller.pid"
  for ((i = 1; i <= nodes; i++)); do start "$prefix$i"; done
  ready "$nodes"
}

down() {
  local jobs node process i
  if timeout 5 scontrol ping 2>/dev/null | grep -q UP; then # slurmstepd outlives slurmd: jobs first
    jobs=$(timeout 5 squeue -h -o %A | sort -u | xargs)
    # shellcheck disable=SC2086
    [ -z "$jobs" ] || timeout 5 scancel $jobs || true
    for ((i = 0; i < 100; i++)); do [ -n "$(timeout 5 squeue -h -o %A)" ] || break; sleep 0.1; done
  fi
  for node in "$folder"/run/*.space; do
    [ -e "$node" ] || continue
    node=$(basename "$node" .space)
    end "$(cat "$folder/run/$node.pid")"
    for process in $(processes "$node"); do kill -9 "$process" 2>/dev/null || true; done
  done
  for i in controller munged; do [ ! -f "$folder/run/$i.pid" ] || end "$(cat "$folder/run/$i.pid")"; done
}

case $command in
  up) up "${3:-2}" "${4:-17200}" ;;
  pull) for process in $(processes "$3"); do kill -9 "$process" 2>/dev/null || true; done ;;
  start) start "$3" ;;
  down) down ;;
  *) echo "unknown: $command" >&2; exit 2 ;;
esac
