#!/usr/bin/env bash
# Trains on several plain hosts without a scheduler. Run it on every host, with the same arguments
# but for the first:
#
#   bash launch/multinode.sh NODE HEAD_HOST CONFIG [key=value ...]
#
#   host-a$ bash launch/multinode.sh 0 host-a CONFIG
#   host-b$ bash launch/multinode.sh 1 host-a CONFIG
#
# NODE counts the hosts from 0; HEAD_HOST is the name or address of host 0. Host 0 reads the data and
# holds the run folder's summary; for resuming, all hosts must see one run folder (NFS).
#
# NODES=2            hosts
# RANKS_PER_NODE=    ranks on each host; by default the GPUs that torch sees there, or 1
# PORT=29500         free on host 0, and open to the others
# RESTARTS=0         how often the ranks of all hosts start again, from their newest checkpoint, after
#                    a failure; give all hosts the same number
# GLOO_SOCKET_IFNAME=, NCCL_SOCKET_IFNAME=   the network interface; gloo's is by default the one that
#                    leads to host 0
set -euo pipefail

if (($# < 3)) || [[ ! $1 =~ ^[0-9]+$ ]]; then
    echo "usage: bash launch/multinode.sh NODE HEAD_HOST CONFIG [key=value ...]" >&2
    exit 2
fi
node=$1
head_host=$2
shift 2

venv=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv
PATH="$venv/bin:$PATH"

# Ctrl-C, SIGTERM or SIGUSR1 on any host: all ranks save the same step and end with 75.
exec pipeline-local hosts "${NODES:-2}" "$node" "${RANKS_PER_NODE:-}" \
    "${PORT:-29500}" "${RESTARTS:-0}" "$head_host" train "$@"
