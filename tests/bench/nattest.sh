#!/bin/bash
# Times `peervpn nattest` behind every kind of NAT beside two other programs, in the same run:
#
#   tests/bench/nattest.sh [--delay MS] [--rounds N]   # MS: round trip to the server, by netem; the running kernel must
#                                                      # have it, or start this under tests/vm/run
#
# PEERVPN names the binary (default target/debug/peervpn). turnutils_natdiscovery comes with coturn. pystun3 is taken
# from PYTHONPATH if it is there (pip download pystun3, unpacked). One line a kind and program: median of N
# rounds (default 1) in seconds, what it said.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
peervpn=${PEERVPN:-$top/target/debug/peervpn}
delay=0 rounds=1
while [ $# -gt 0 ]; do
  case $1 in
  --delay) delay=$2 ;;
  --rounds) rounds=$2 ;;
  *) echo "nattest.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
[ "$(id -u)" = 0 ] || { echo "SKIP: root"; exit 0; }
for tool in ip nft conntrack turnserver turnutils_natdiscovery python3; do
  command -v "$tool" >/dev/null || { echo "SKIP: $tool"; exit 0; }
done
[ -x "$peervpn" ] || { echo "nattest.sh: no $peervpn (cargo build, or PEERVPN=…)" >&2; exit 1; }
p=pvbench-$$
work=$(mktemp -d)
turn=
end() {
  [ -z "$turn" ] || kill "$turn" 2>/dev/null || true
  for ns in s r h; do ip netns del "$p-$ns" 2>/dev/null || true; done
  rm -rf "$work"
}
trap end EXIT

for ns in s r h; do ip netns add "$p-$ns"; ip -n "$p-$ns" link set lo up; done
ip -n "$p-s" link add name r type veth peer name eth0 netns "$p-r"
ip -n "$p-r" link add name lan0 type veth peer name eth0 netns "$p-h"
ip -n "$p-s" -batch - <<I
addr add 192.0.2.3/32 dev lo
addr add 192.0.2.4/32 dev lo
addr add 203.0.113.1/24 dev r
link set r up
route add 198.51.100.0/24 via 203.0.113.20
I
ip -n "$p-r" -batch - <<I
addr add 203.0.113.20/24 dev eth0
addr add 192.168.1.1/24 dev lan0
addr add 198.51.100.1/24 dev lan0
link set eth0 up
link set lan0 up
route add default via 203.0.113.1
I
ip -n "$p-h" link set eth0 up
ip netns exec "$p-r" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
if [ "$delay" != 0 ]; then
  # half the round trip each way, on the wire between server and router
  ip netns exec "$p-s" tc qdisc add dev r root netem delay "$((delay / 2))ms"
  ip netns exec "$p-r" tc qdisc add dev eth0 root netem delay "$((delay - delay / 2))ms"
fi
ip netns exec "$p-s" turnserver -n --no-auth --stun-only --no-cli --no-tls --no-dtls --no-tcp --relay-threads 1 \
  -L 192.0.2.3 -L 192.0.2.4 -p 3478 --alt-listening-port=3479 --log-file stdout --no-stdout-log \
  --pidfile "$work/pid" --userdb "$work/db" >/dev/null 2>&1 &
turn=$!

stateful() { # INBOUND
  echo "table inet edge {
  chain entering {
    type filter hook input priority 0
    ct state established,related accept
    iifname eth0 drop
  }
  chain passing {
    type filter hook forward priority 0; policy drop
    ct state established,related accept
    iifname lan0 accept
    ${1-}
  }
}"
}
nat() { # HOW PREROUTING
  echo "table ip nat {
  set seen { type inet_service . ipv4_addr; flags dynamic,timeout; timeout 5m; }
  chain inward {
    type nat hook prerouting priority -100
    ${2-}
  }
  chain outward {
    type nat hook postrouting priority 100
    oifname eth0 masquerade ${1-}
  }
  chain watching {
    type filter hook forward priority -10
    iifname lan0 meta l4proto udp add @seen { udp sport . ip daddr }
  }
}"
}
rules() { # KIND
  local high='iifname eth0 udp dport 1024-65535'
  case $1 in
  udp-firewall) stateful ;;
  full-cone) nat "" "$high dnat to 192.168.1.2"; stateful "$high accept" ;;
  restricted-cone)
    nat "" "iifname eth0 udp dport . ip saddr @seen dnat to 192.168.1.2"
    stateful "iifname eth0 ct status dnat accept" ;;
  port-restricted-cone) nat; stateful ;;
  symmetric) nat fully-random; stateful ;;
  blocked) echo 'table inet edge { chain passing { type filter hook forward priority 0; meta l4proto udp drop; }; }' ;;
  esac
}
site() { # KIND
  local host=192.168.1.2 gateway=192.168.1.1
  case $1 in open | udp-firewall) host=198.51.100.2 gateway=198.51.100.1 ;; esac
  ip -n "$p-h" addr flush dev eth0 scope global
  ip -n "$p-h" addr add "$host/24" dev eth0
  ip -n "$p-h" route replace default via "$gateway"
  ip netns exec "$p-r" nft flush ruleset
  rules "$1" | ip netns exec "$p-r" nft -f -
  forget
}
forget() { # what another program's or kind's mappings left behind: some always use the same port
  ip netns exec "$p-r" conntrack -F >/dev/null 2>&1
}
timed() { # NAME KIND COMMAND…
  local name=$1 kind=$2 start said round times=
  shift 2
  for round in $(seq "$rounds"); do
    forget
    start=$(date +%s%N)
    said=$(ip netns exec "$p-h" timeout 60 "$@" 2>/dev/null | summary "$name") || true
    times="$times $((($(date +%s%N) - start) / 1000000))"
  done
  # shellcheck disable=SC2086
  printf '%-22s %-24s %6.2f s  %s\n' "$kind" "$name" \
    "$(printf '%s\n' $times | sort -n | awk '{ t[NR] = $1 } END { print t[int((NR + 1) / 2)] / 1000 }')" "$said"
}
summary() {
  case $1 in
  peervpn) sed -n 's/.*"nat_type":"\([^"]*\)".*/\1/p' ;;
  turnutils*) grep -E 'NAT with|not present|Mapping!|Filtering!|no NAT' | sort -u | paste -sd, ;;
  pystun3) sed -n 's/NAT Type: //p' ;;
  esac
}
sleep 1
for kind in open udp-firewall full-cone restricted-cone port-restricted-cone symmetric blocked; do
  site "$kind"
  timed peervpn "$kind" "$peervpn" nattest --json --stun-server 192.0.2.3:3478 --stun-server 192.0.2.4:3478
  [ "$kind" = blocked ] && continue # the others wait for ever or for a minute
  timed turnutils_natdiscovery "$kind" turnutils_natdiscovery -m -f 192.0.2.3
  if python3 -c 'import stun' 2>/dev/null; then
    timed pystun3 "$kind" python3 -c 'from stun import cli; cli.main()' -H 192.0.2.3 -P 3478
  fi
done
