#!/bin/bash
# What an idle exit behind a NAT costs: its wake-ups a minute, its processor time and its memory; without the mapping
# keeper, with it, and as it comes. The reach: 4 wake-ups a minute for the keeper, 6 in all, 1 s of processor time an hour.
#
#   tests/bench/keeper.sh [SECONDS]           # default 120 a run; on the kernel back end where there is one, else userspace;
#                                             # start it under tests/vm/run for the kernel's
#
# PEERVPN names the binary (default target/debug/peervpn). A wake-up is a voluntary context switch of any of the node's
# threads (proc_pid_status(5)); the userspace device is a process of its own and not counted.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
peervpn=${PEERVPN:-$top/target/debug/peervpn}
seconds=${1:-120}
[ "$(id -u)" = 0 ] || { echo "SKIP: root"; exit 0; }
for tool in ip nft turnserver; do command -v "$tool" >/dev/null || { echo "SKIP: $tool"; exit 0; }; done
[ -x "$peervpn" ] || { echo "keeper.sh: no $peervpn (cargo build, or PEERVPN=…)" >&2; exit 1; }
p=pvbench-$$
work=$(mktemp -d)
pids=
end() {
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  for ns in s r h; do ip netns del "$p-$ns" 2>/dev/null || true; done
  rm -rf "$work"
}
trap end EXIT

for ns in s r h; do ip netns add "$p-$ns"; ip -n "$p-$ns" link set lo up; done
ip netns exec "$p-r" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
ip -n "$p-s" -batch - <<I
link add name r type veth peer name eth0 netns $p-r
addr add 192.0.2.3/32 dev lo
addr add 192.0.2.4/32 dev lo
addr add 2001:db8:ff::3/128 dev lo
addr add 2001:db8:ff::4/128 dev lo
addr add 203.0.113.1/24 dev r
addr add 2001:db8:1::1/64 dev r nodad
link set r up
route add 2001:db8:2::/64 via 2001:db8:1::2
I
ip -n "$p-r" -batch - <<I
link add name lan0 type veth peer name eth0 netns $p-h
addr add 203.0.113.20/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
addr add 192.168.1.1/24 dev lan0
addr add 2001:db8:2::1/64 dev lan0 nodad
link set eth0 up
link set lan0 up
route add default via 203.0.113.1
route add default via 2001:db8:1::1
I
ip -n "$p-h" -batch - <<I
addr add 192.168.1.2/24 dev eth0
addr add 2001:db8:2::2/64 dev eth0 nodad
link set eth0 up
route add default via 192.168.1.1
route add default via 2001:db8:2::1
I
ip netns exec "$p-r" nft 'table ip nat { chain outward { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }'
ip netns exec "$p-s" turnserver -n --no-auth --stun-only --no-cli --no-tls --no-dtls --no-tcp --relay-threads 1 \
  -L 192.0.2.3 -L 192.0.2.4 -L 2001:db8:ff::3 -L 2001:db8:ff::4 -p 3478 --log-file stdout --no-stdout-log --pidfile "$work/pid" \
  --userdb "$work/db" >/dev/null 2>&1 &
pids=$!
sleep 3

switches() { # PID
  cat /proc/"$1"/task/*/status | awk '/^voluntary/ { sum += $2 } END { print sum }'
}
used() { # PID: microseconds of processor time; where the kernel does not say so exactly, in clock ticks
  cat "/proc/$1"/task/*/schedstat 2>/dev/null | awk '{ sum += $1 } END { if (!sum) exit 1; printf "%d\n", sum / 1000 }' ||
    sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ printf "%d\n", ($12 + $13) * 1000000 / hz }'
}
measure() { # NAME ARG…
  local name=$1 pid i
  shift
  mkdir "$work/$name"
  ip netns exec "$p-h" "$peervpn" --state-dir "$work/$name/state" --run-dir "$work/$name/run" exit --json \
    --accept none "$@" > "$work/$name/out" 2> "$work/$name/err" < /dev/null &
  pid=$!
  pids="$pids $pid"
  for i in $(seq 200); do grep -q '"ready"' "$work/$name/out" && break; sleep 0.1; done
  grep -q '"ready"' "$work/$name/out" || { cat "$work/$name/err"; exit 1; }
  sleep 3
  local before used
  local resident
  before=$(switches "$pid") used=$(used "$pid")
  sleep "$seconds"
  resident=$(awk '/^VmRSS/ { print $2 }' "/proc/$pid/status")
  before=$(($(switches "$pid") - before)) used=$(($(used "$pid") - used))
  printf '%-20s %6.1f wake-ups a minute %6.2f s of processor time an hour, %.1f MiB resident\n' "$name" \
    "$(awk "BEGIN { print $before * 60 / $seconds }")" "$(awk "BEGIN { print $used * 3600 / 1000000 / $seconds }")" \
    "$(awk "BEGIN { print $resident / 1024 }")"
  kill -INT "$pid"
  wait "$pid"
}
v4="--stun-server 192.0.2.3:3478 --stun-server 192.0.2.4:3478"
v6="--stun-server [2001:db8:ff::3]:3478 --stun-server [2001:db8:ff::4]:3478"
quiet="--no-portmap --dns none"
# shellcheck disable=SC2086
measure without-keeper --no-stun $quiet
# shellcheck disable=SC2086
measure keeper-v4 $v4 $quiet
# shellcheck disable=SC2086
measure keeper-v4-and-v6 $v4 $v6 $quiet
# shellcheck disable=SC2086
measure all-of-it $v4 $v6
