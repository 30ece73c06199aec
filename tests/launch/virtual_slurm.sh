#!/usr/bin/env bash
# A real Slurm on one machine: munge, slurmctld and virtual nodes n1..nN, each a "host" of its own.
#
#   apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge iproute2
#   bash virtual_slurm.sh DIR            start (as root); prints the environment to use
#   bash virtual_slurm.sh DIR stop       stop everything that it started, and nothing else
#   eval "$(bash virtual_slurm.sh DIR)"  start and use: sinfo, sbatch, srun, scancel ...
#
# NODES=2        virtual nodes
# NODE_CPUS=4    what each claims to have (config_overrides: the true number does not matter)
# MODE=netns     each node has its own network, PID, UTS and mount namespace: its own loopback, ports,
#                hostname and processes; the nodes and the "login node" (this shell) meet on a bridge.
#                Kill a node:  kill -9 $(<DIR/n2/init.pid).  Its network:  ip link set slNAME-n2 down.
#                Bring it back:  bash virtual_slurm.sh DIR node 2
# MODE=plain     all slurmd in one network, on ports of their own; only /etc/hosts is a private copy
# GPUS=0         claimed GPUs per node: jobs get SLURM_GPUS_ON_NODE and CUDA_VISIBLE_DEVICES, and no GPU
# SLURMD_TIMEOUT=20  seconds until a silent node is down (Slurm's own default: 300)
# SUBNET=10.77.0 of the bridge
# EXTRA=         more lines for slurm.conf ("KillWait=5")
#
# Everything lies in DIR, munge's key and socket included: nothing in /etc is touched. Debian bookworm's
# Slurm is 22.05. No cgroups, no accounting database: sacct does not work; scontrol show job does.
set -euo pipefail

dir=$(mkdir -p "$1" && cd "$1" && pwd)
action=${2:-start}
[[ ! -f $dir/settings ]] || source "$dir/settings"
nodes=${NODES:-2} cpus=${NODE_CPUS:-4} mode=${MODE:-netns} gpus=${GPUS:-0} net=${SUBNET:-10.77.0}
tag=sl$(cksum <<<"$dir" | cut -c1-4) # interface names have 15 characters
host=$(hostname -s)
export SLURM_CONF=$dir/slurm.conf

say() { echo "virtual_slurm: $*" >&2; }

write_config() {
    printf 'NODES=%q NODE_CPUS=%q MODE=%q GPUS=%q SUBNET=%q\n' \
        "$nodes" "$cpus" "$mode" "$gpus" "$net" >"$dir/settings"
    head -c 1024 /dev/urandom >"$dir/munge.key"
    chmod 600 "$dir/munge.key"
    mkdir -p "$dir"/{state,log}
    chmod 755 "$dir"
    local control=$net.1
    [[ $mode == netns ]] || control=127.0.0.1
    {
        cat <<CONF
ClusterName=virtual
SlurmctldHost=$host($control)
SlurmctldPort=$([[ $mode == netns ]] && echo 6817 || echo 16817)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/%n/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=node_reg_mem_percent=1
ReturnToService=2
SlurmdTimeout=${SLURMD_TIMEOUT:-20}
InactiveLimit=0
MinJobAge=3600
PropagateResourceLimitsExcept=MEMLOCK
CONF
        [[ -z ${EXTRA:-} ]] || printf '%s\n' "$EXTRA"
        local line n
        ((gpus == 0)) || echo "GresTypes=gpu"
        for ((n = 1; n <= nodes; n++)); do
            line="NodeName=n$n CPUs=$cpus RealMemory=1000 State=UNKNOWN"
            ((gpus == 0)) || line+=" Gres=gpu:$gpus"
            if [[ $mode == netns ]]; then
                line+=" NodeAddr=$net.$((10 + n))"
            else
                line+=" NodeHostname=$host NodeAddr=127.0.0.1 Port=$((16820 + n))"
            fi
            echo "$line"
        done
        echo "PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO"
    } >"$dir/slurm.conf"
    echo "CgroupAutomount=no" >"$dir/cgroup.conf"
    if ((gpus > 0)); then # files stand for the devices: without, the nodes are "inval"
        for ((n = 0; n < gpus; n++)); do : >"$dir/gpu$n"; done
        echo "Name=gpu File=$dir/gpu[0-$((gpus - 1))]" >"$dir/gres.conf"
    fi
    : >"$dir/resolv.conf"
    {
        echo "127.0.0.1 localhost"
        if [[ $mode == netns ]]; then echo "$net.1 $host"; else echo "127.0.0.1 $host"; fi
        for ((n = 1; n <= nodes; n++)); do
            if [[ $mode == netns ]]; then echo "$net.$((10 + n)) n$n"; else echo "127.0.0.1 n$n"; fi
        done
    } >"$dir/hosts"
}

start_node() { # number
    local n=$1 name=n$1
    mkdir -p "$dir/$name/spool"
    # Run inside the node's mount namespace: names for nodes, then slurmd in the foreground.
    cat >"$dir/$name/boot" <<BOOT
mount --make-rprivate /
mount --bind "$dir/hosts" /etc/hosts
mount --bind "$dir/resolv.conf" /etc/resolv.conf # empty: a name server that is out of reach costs 10 s a look-up
export SLURM_CONF="$SLURM_CONF"
if [[ $mode == netns ]]; then
    hostname $name
    mount -t tmpfs none /dev/shm
    ip link set lo up
fi
slurmd -D -N $name -f "$SLURM_CONF" &
wait # this shell is the node's init: it reaps
BOOT
    if [[ $mode == netns ]]; then
        local ns=$tag-$name
        if ! ip netns list | grep -qw "$ns"; then
            ip netns add "$ns"
            ip link add "$ns" type veth peer name eth0 netns "$ns"
            ip link set "$ns" master "$tag-br" up
            ip netns exec "$ns" ip addr add "$net.$((10 + n))/24" dev eth0
            ip netns exec "$ns" ip link set eth0 up
        fi
        ip link set "$ns" up
        # nsenter, not ip netns exec: that mounts a /sys without cgroups, on which slurmd refuses to start
        setsid nsenter --net="/run/netns/$ns" unshare --uts --mount --pid --fork --kill-child=SIGKILL --mount-proc \
            bash "$dir/$name/boot" </dev/null >"$dir/log/$name.out" 2>&1 &
    else
        setsid unshare --mount bash "$dir/$name/boot" </dev/null >"$dir/log/$name.out" 2>&1 &
    fi
    echo $! >"$dir/$name/outer.pid"
    sleep 0.5 # for the namespace's first process to exist
    if [[ $mode == netns ]]; then
        pgrep -P "$(<"$dir/$name/outer.pid")" >"$dir/$name/init.pid" ||
            { say "$name did not start: $dir/log/$name.out" && exit 1; }
    else
        cp "$dir/$name/outer.pid" "$dir/$name/init.pid"
    fi
}

start() {
    for tool in munged slurmctld slurmd ip; do
        command -v "$tool" >/dev/null || { say "no $tool: apt-get install slurm-wlm munge iproute2" && exit 1; }
    done
    [[ ! -f $dir/slurmctld.pid ]] || { say "already started in $dir" && exit 1; }
    write_config
    # as root, in a folder of its own: hence --force (it insists on a user and folders of its own)
    munged --force --socket "$dir/munge.socket" --key-file "$dir/munge.key" --seed-file "$dir/munge.seed" \
        --pid-file "$dir/munged.pid" --log-file "$dir/log/munged.log" >&2
    if [[ $mode == netns ]]; then
        ip link add "$tag-br" type bridge
        ip addr add "$net.1/24" dev "$tag-br"
        ip link set "$tag-br" up
    fi
    slurmctld -c -f "$SLURM_CONF" >&2 # daemonises; -c: forgets earlier states
    for ((n = 1; n <= nodes; n++)); do start_node "$n"; done
    for ((i = 0; i < 60; i++)); do
        [[ $(sinfo -h -t idle -o %D 2>/dev/null) == "$nodes" ]] && break
        sleep 0.5
    done
    sinfo >&2
    echo "export SLURM_CONF=$dir/slurm.conf"
}

end() { # file that holds a process id
    local pid
    [[ -s $1 ]] || return 0
    pid=$(<"$1")
    kill "${2:--TERM}" "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; i++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    rm -f "$1"
}

stop_node() { # number; everything on it ends with its init (netns), or slurmd and its steps by slurmd (plain)
    local name=n$1
    if [[ $mode == netns ]]; then
        end "$dir/$name/init.pid" -KILL
    else
        end "$dir/$name/slurmd.pid"
        end "$dir/$name/init.pid"
    fi
    rm -f "$dir/$name/outer.pid"
}

stop() {
    scancel --state=RUNNING --full --signal=KILL 2>/dev/null || true
    scancel --state=PENDING 2>/dev/null || true
    for ((n = 1; n <= nodes; n++)); do
        stop_node "$n"
        [[ $mode != netns ]] || ip netns del "$tag-n$n" 2>/dev/null || true
        [[ $mode != netns ]] || ip link del "$tag-n$n" 2>/dev/null || true
    done
    end "$dir/slurmctld.pid"
    end "$dir/munged.pid"
    [[ $mode != netns ]] || ip link del "$tag-br" 2>/dev/null || true
    rm -f "$dir/settings" # the next start may choose others; logs and spool stay
    say "stopped"
}

case $action in
start) start ;;
stop) stop ;;
node) stop_node "$3" && start_node "$3" ;; # (re)boot one node
*) say "usage: bash virtual_slurm.sh DIR [stop | node N]" && exit 2 ;;
esac
