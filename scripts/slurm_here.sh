#!/usr/bin/env bash
# A real Slurm cluster of several nodes on this one machine: no systemd, nothing outside its folder.
#   bash scripts/slurm_here.sh up FOLDER [NODES=4] [PROCESSORS=2]   start; prints what to export
#   bash scripts/slurm_here.sh node FOLDER NAME                     start one node again
#   bash scripts/slurm_here.sh down FOLDER                          stop
#   bash scripts/slurm_here.sh install                              only what is missing
# Each node is a slurmd with a name of its own (n1, n2, ...) on loopback. Slurm and munge are
# installed if they are missing and this is root on Debian. SLURM_HERE_TIMEOUT: seconds after which a
# silent node counts as lost (default 30). SLURM_HERE_PREFIX: command in front of a node's slurmd.
set -euo pipefail

die() { # what failed - allowed - do
    echo "slurm_here: error: $1" >&2
    exit 3
}

apt() { # one script at a time
    DEBIAN_FRONTEND=noninteractive flock /etc/apt apt-get -o DPkg::Lock::Timeout=300 "$@"
}

need() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null &&
        command -v sbatch >/dev/null && command -v munged >/dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        die "no Slurm here - do: apt-get install -y slurm-wlm munge libpmix-dev, as root"
    echo "slurm_here: apt-get install slurm-wlm munge libpmix-dev" >&2
    # libpmix-dev: its libpmix.so is what srun --mpi=pmix opens
    { apt update && apt install -y --no-install-recommends slurm-wlm munge libpmix-dev; } \
        >/tmp/slurm_here.$$ 2>&1 </dev/null ||
        die "apt-get failed: $(tail -1 /tmp/slurm_here.$$) - everything it said: /tmp/slurm_here.$$"
    rm -f /tmp/slurm_here.$$
}

free_ports() { # how many in a row nobody listens at
    python3 - "$1" <<'PY'
import random, socket, sys
count = int(sys.argv[1])
for first in random.sample(range(17000, 29000, 64), 100):
    try:
        for port in range(first, first + count):
            socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        continue
    print(first)
    break
PY
}

write_conf() { # nodes, processors of each
    local host user first
    host=$(hostname) user=$(id -un) first=$(free_ports $(($1 + 1)))
    [ -n "$first" ] || die "no free ports between 17000 and 29000 - do: stop what listens there"
    cat >"$D/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$first
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$D/munge/munge.socket
CredType=cred/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
TmpFS=$D/tmp/%n
SlurmdTimeout=${SLURM_HERE_TIMEOUT:-30}
InactiveLimit=0
KillWait=10
MinJobAge=300
NodeName=n[1-$1] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((first + 1))-$((first + $1))] CPUs=$2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

node() { # a node by its name
    # shellcheck disable=SC2086  # the prefix may have words
    ${SLURM_HERE_PREFIX:-} slurmd -N "$1"
}

up() { # nodes, processors
    need
    [ ! -e "$D/slurm.conf" ] || down
    mkdir -p "$D"/{state,spool,log,munge}
    chmod 755 "$D/munge"
    write_conf "$1" "$2"
    [ -f "$D/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$D/munge.key")
    munged --key-file="$D/munge.key" --socket="$D/munge/munge.socket" --force \
        --pid-file="$D/munge/munged.pid" --seed-file="$D/munge/seed" --log-file="$D/log/munged.log"
    slurmctld -c
    local one
    for one in $(seq 1 "$1"); do
        mkdir -p "$D/tmp/n$one" "$D/spool/n$one" # two nodes must not share what PMIx leaves there
        node "n$one"
    done
    for _ in $(seq 1 200); do
        [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = "$1" ] && break
        sleep 0.1
    done
    [ "$(sinfo -h -t idle -o %D)" = "$1" ] ||
        die "not all nodes came: $(sinfo -h -o '%D %T' | tr '\n' ' ')- see $D/log"
    echo "export SLURM_CONF=$D/slurm.conf"
}

ours() { # processes of this cluster: daemons, and steps that outlived them
    local process
    for process in $(pgrep -x 'slurmd|slurmctld|slurmstepd|munged'); do
        cat "/proc/$process/environ" 2>/dev/null | tr '\0' '\n' |
            grep -qx "SLURM_CONF=$D/slurm.conf" && echo "$process"
    done
    true
}

down() {
    local jobs processes
    jobs=$(timeout 10 squeue -h -o %A 2>/dev/null | sort -u) || true
    # shellcheck disable=SC2086  # one word a job, a process
    [ -z "$jobs" ] || timeout 10 scancel $jobs || true
    timeout 10 scontrol shutdown 2>/dev/null || true
    for signal in TERM TERM KILL; do
        processes=$(ours)
        [ -n "$processes" ] || break
        # shellcheck disable=SC2086
        kill -$signal $processes 2>/dev/null || true
        sleep 0.5
    done
    rm -f "$D/slurm.conf"
}

if [ "$*" = install ]; then need; exit; fi
[ $# -ge 2 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
mkdir -p "$2"
D=$(readlink -f "$2")
export SLURM_CONF=$D/slurm.conf
case $1 in
    up) up "${3:-4}" "${4:-2}" ;;
    node) node "${3:?name of a node}" ;;
    down) down ;;
    *) die "$1 is not a command - allowed: up, node, down, install" ;;
esac
