#!/bin/bash
# A real Slurm of two nodes on this one machine, for tests/experiments/test_slurm.py and for trying `llasa ... --slurm`. As root:
#   apt-get install -y slurm-wlm munge
#   . tests/experiments/slurm_single_node.sh start      (sourced: it sets SLURM_CONF; DIR=/tmp/llasa-slurm unless set)
#   LLASA_TEST_SLURM=1 python -m pytest tests/experiments/test_slurm.py
#   bash tests/experiments/slurm_single_node.sh stop
# Partitions: main (default) and urgent, whose jobs preempt those of main: SIGTERM, 5 s of grace, requeue.
# No accounting (sacct fails), no cgroups: it runs inside a container.

llasa_slurm() {
    local dir=${DIR:-/tmp/llasa-slurm} daemon node
    if [ "$1" = stop ]; then
        for daemon in slurmd-n1 slurmd-n2 slurmctld munged; do
            [ -s "$dir/$daemon.pid" ] && kill "$(cat "$dir/$daemon.pid")" 2>/dev/null
            rm -f "$dir/$daemon.pid"
        done
        return 0
    fi
    mkdir -p "$dir/state" "$dir/spool-n1" "$dir/spool-n2"
    [ -s "$dir/munge.key" ] || (umask 077; head -c 1024 /dev/urandom > "$dir/munge.key")
    cat > "$dir/slurm.conf" <<CONF
ClusterName=llasa
SlurmctldHost=$(hostname -s)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=60
MpiDefault=none
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
    for node in n1 n2; do  # the names that a job's node list holds
        grep -q "[[:space:]]$node\$" /etc/hosts || echo "127.0.0.1 $node" >> /etc/hosts
    done
    export SLURM_CONF=$dir/slurm.conf
    munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" &&
        slurmctld -c && slurmd -N n1 && slurmd -N n2 || return 1
    for _ in $(seq 50); do
        [ "$(sinfo --noheader --partition main --format %T 2>/dev/null)" = idle ] && { sinfo; return 0; }
        sleep 0.2
    done
    echo "the nodes are not idle, see $dir/*.log" >&2
    return 1
}

llasa_slurm "${1:-start}"
