#!/usr/bin/env bash
# Two ranks with a narrow or long line between them: two network namespaces of this host (as root).
#
#   bash experiments/link.sh RATE|- SECONDS COMMAND...     such as bench baselines CONFIG --json FILE
#
# RATE is tc's (such as 100mbit), by a token bucket on a veth pair; SECONDS of latency one way, by
# experiments/delay.py. One of them: `- 0.02` is a long line, `100mbit 0` a narrow one.
set -euo pipefail

rate=$1 delay=$2
shift 2
a="pl-a-$$" b="pl-b-$$"
ip netns add "$a"
ip netns add "$b"
carrier=
trap 'kill $carrier $other 2>/dev/null || true; ip netns del "$a"; ip netns del "$b"' EXIT
other=
ip -n "$a" link set lo up
ip -n "$b" link set lo up

if [[ $delay == 0 ]]; then
    device=near0 address=10.7.0.1
    ip -n "$a" link add near0 type veth peer name near0 netns "$b"
    ip -n "$a" addr add 10.7.0.1/24 dev near0
    ip -n "$b" addr add 10.7.0.2/24 dev near0
    for namespace in "$a" "$b"; do
        ip -n "$namespace" link set near0 up
        if [[ $rate != - ]]; then
            tc -n "$namespace" qdisc add dev near0 root tbf rate "$rate" burst 128kb latency 400ms
        fi
    done
else
    # TCP as on hosts meant for long lines: else its windows are the line. Not BBR: it paces what it sends
    # by what it has sent, so a message after small ones takes longer than the same after large ones.
    for namespace in "$a" "$b"; do
        ip netns exec "$namespace" sysctl -qw net.ipv4.tcp_congestion_control=reno \
            net.ipv4.tcp_slow_start_after_idle=0 \
            net.ipv4.tcp_rmem="4096 16777216 67108864" net.ipv4.tcp_wmem="4096 16777216 67108864"
    done
    device=far0 address=10.8.0.1
    python "$(dirname "$0")/delay.py" "$a" "$b" "$delay" &
    carrier=$!
    sleep 2
fi

rank() {
    ip netns exec "$1" env RANK="$2" WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 \
        MASTER_ADDR="$address" MASTER_PORT=29517 GLOO_SOCKET_IFNAME="$device" \
        python -m pipeline_local "${@:3}"
}
rank "$b" 1 "$@" &
other=$!
rank "$a" 0 "$@"
wait "$other"
