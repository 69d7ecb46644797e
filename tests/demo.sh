#!/bin/bash
# PeerVPN between two homes, on this machine alone: a small internet in network namespaces with two NATs, a STUN server
# and a web server; the real program at both ends; every line shown is the real output.
#
#   sudo tests/demo.sh [BINARY]        default: $CARGO_TARGET_DIR/debug/peervpn, else target/debug/peervpn
#
# Ends 0 only if what it shows is true. Nothing of this machine's own network is touched; all of it is gone afterwards.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
program=$(readlink -f "${1:-${CARGO_TARGET_DIR:-target}/debug/peervpn}")
[ -x "$program" ] || { echo "demo: no program at ${1:-target/debug/peervpn}: run cargo build first" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "demo: needs root, for network namespaces: sudo $0 $*" >&2; exit 1; }
tests/install-deps.sh --check > /dev/null || { tests/install-deps.sh --check >&2; echo 'demo: sudo tests/install-deps.sh installs it' >&2; exit 1; }

web=192.0.2.80 web6=2001:db8:ff::80 stun=192.0.2.3
exit_home=203.0.113.20 peer_home=198.51.100.10
dir=$(mktemp -d /tmp/pvdemo.XXXXXX)
ns=pvdemo$$

cleanup() {
  local status=$? name pid
  trap '' INT TERM
  for name in exit peer internet exit-router peer-router; do
    # everything in these namespaces was started here, the tunnel's own processes too
    for pid in $(ip netns pids "$ns-$name" 2> /dev/null); do kill -KILL "$pid" 2> /dev/null || true; done
  done
  wait 2> /dev/null || true
  for name in exit peer internet exit-router peer-router; do ip netns del "$ns-$name" 2> /dev/null || true; done
  rm -rf "$dir"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
screen() { sed -u "s/^/  $dim$1 |$plain /"; }
fail() { printf '\ndemo failed: %s\n' "$*" >&2; for f in "$dir"/*.log; do echo "--- $f"; cat "$f"; done >&2; exit 1; }
at() { local place=$1; shift; ip netns exec "$ns-$place" "$@"; }

# the program on a host of its own: state and run directories, /etc/resolv.conf, and /run/wireguard, where devices of the
# same name would meet; to be started with &, whose $! is then the program
mkdir -p /run/wireguard
host() {
  local place=$1
  shift
  mkdir -p "$dir/$place.sockets"
  [ -e "$dir/$place.resolv.conf" ] || echo nameserver 192.0.2.53 > "$dir/$place.resolv.conf"
  exec ip netns exec "$ns-$place" \
    sh -c 'mount --bind "$1.sockets" /run/wireguard && mount --bind "$1.resolv.conf" /etc/resolv.conf && shift && exec "$@"' \
    sh "$dir/$place" "$program" --state-dir "$dir/$place.state" --run-dir "$dir/$place.run" "$@"
}

snapshot() {
  at "$1" sh -c 'ip link; ip address; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule
    nft list ruleset; sysctl net.ipv4.ip_forward net.ipv4.conf net.ipv6.conf 2> /dev/null' |
    sed -E 's/(valid_lft|preferred_lft|expires) [^ ]+//g'
}

# shows the peer's requests and checks where they arrived from
asks() { # EXPECTED-V4 EXPECTED-V6
  local seen
  for pair in "$web $1" "[$web6] $2"; do
    seen=$(at peer curl -gsS --max-time 6 "http://${pair% *}/") || fail "no answer from ${pair% *}"
    printf '  %speer |%s curl http://%s/\n  %speer |%s   you came from %s\n' "$dim" "$plain" "${pair% *}" "$dim" "$plain" "$seen"
    [ "$seen" = "${pair#* }" ] || fail "the request arrived from $seen, not from ${pair#* }"
  done
}

wait_for() { # PID FILE PATTERN SECONDS WHAT
  local pid=$1 i
  shift
  for i in $(seq $(($3 * 20))); do
    grep -qE "$2" "$1" 2> /dev/null && return
    kill -0 "$pid" 2> /dev/null || break
    sleep 0.05
  done
  fail "$4"
}

build() {
  printf 'netns add %s\n' "$ns-internet" "$ns-exit" "$ns-exit-router" "$ns-peer" "$ns-peer-router" | ip -batch -
  local name
  for name in internet exit-router peer-router; do
    at "$name" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.forwarding=1 \
      net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
  done
  for name in exit peer; do at "$name" sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0; done
  ip -n "$ns-internet" -batch - << END
link set lo up
addr add $web/32 dev lo
addr add $web6/128 dev lo
addr add $stun/32 dev lo
addr add 192.0.2.4/32 dev lo
END
  home exit "${exit_home%.*}" "$exit_home" e
  home peer "${peer_home%.*}" "$peer_home" 1
  # the exit's router forwards UDP to the exit, as one set to, or a full-cone NAT, does; the peer's lets nothing in
  at exit-router nft -f - << 'END'
table ip nat {
  chain inward { type nat hook prerouting priority -100; iifname eth0 udp dport 1024-65535 dnat to 192.168.1.2; }
  chain outward { type nat hook postrouting priority 100; oifname eth0 masquerade; }
}
END
  at peer-router nft -f - << 'END'
table ip nat { chain outward { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }
table inet edge { chain passing { type filter hook forward priority 0; policy drop;
  ct state established,related accept; iifname lan0 accept; }; }
END
  at internet turnserver -n --no-auth --stun-only --no-cli --no-tls --no-dtls -p 3478 -L "$stun" -L 192.0.2.4 \
    --log-file stdout --pidfile "$dir/turn.pid" --userdb "$dir/turn.db" > /dev/null 2>&1 &
  at internet python3 - "$web" "$web6" > "$dir/web.log" 2>&1 << 'END' &
import socket, sys, threading
def serve(listener):
    while True:
        connection, caller = listener.accept()
        connection.recv(4096)
        body = caller[0].encode()
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        connection.close()
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 80), family=family)
    threading.Thread(target=serve, args=(listener,)).start()
print("listening", flush=True)
END
  wait_for $! "$dir/web.log" listening 10 'the web server does not start'
}

home() { # NAME NETWORK PUBLIC-ADDRESS V6-NUMBER
  ip -batch - << END
link add name $1 netns $ns-internet type veth peer name eth0 netns $ns-$1-router
link add name lan0 netns $ns-$1-router type veth peer name eth0 netns $ns-$1
END
  ip -n "$ns-internet" -batch - << END
addr add $2.1/24 dev $1
addr add 2001:db8:$4::1/64 dev $1 nodad
link set $1 up
END
  ip -n "$ns-$1-router" -batch - << END
link set lo up
addr add $3/24 dev eth0
addr add 2001:db8:$4::10/64 dev eth0 nodad
link set eth0 up
route add default via $2.1
route add default via 2001:db8:$4::1
addr add 192.168.1.1/24 dev lan0
addr add 2001:db8:$4:1::1/64 dev lan0 nodad
link set lan0 up
END
  ip -n "$ns-internet" route add "2001:db8:$4:1::/64" via "2001:db8:$4::10"
  ip -n "$ns-$1" -batch - << END
link set lo up
addr add 192.168.1.2/24 dev eth0
addr add 2001:db8:$4:1::2/64 dev eth0 nodad
link set eth0 up
route add default via 192.168.1.1
route add default via 2001:db8:$4:1::1
END
}

say 'A small internet, in network namespaces of this machine:'
cat << END
  peer 192.168.1.2 -- NAT $peer_home --.
                                            internet: web server $web, STUN server $stun
  exit 192.168.1.2 -- NAT $exit_home ---'
END
build
snapshot exit > "$dir/exit.before"
snapshot peer > "$dir/peer.before"

say '1. The peer asks the web server where it comes from: from its own NAT.'
asks "$peer_home" 2001:db8:1:1::2

say "2. On the exit's machine: peervpn exit"
host exit exit --accept any --stun-server "$stun:3478" > "$dir/exit.log" 2>&1 &
exit_pid=$!
wait_for "$exit_pid" "$dir/exit.log" '[A-Za-z0-9+/]{43}=@' 15 'the exit prints no connect string'
sleep 0.2
screen exit < "$dir/exit.log"
string=$(grep -oE '[A-Za-z0-9+/]{43}=@[^ ]+' "$dir/exit.log" | head -n 1)
case $string in *@*"$exit_home":*) ;; *) fail "the connect string lacks the NAT's address $exit_home: $string" ;; esac
shown=$(wc -l < "$dir/exit.log")

say "3. On the peer's machine: peervpn connect $string"
host peer connect "$string" --stun-server "$stun:3478" > "$dir/peer.log" 2>&1 &
peer_pid=$!
for _ in $(seq 400); do
  # connected = the route to the web server goes through the tunnel
  at peer ip route get "$web" 2> /dev/null | grep -q peervpn0 && break
  kill -0 "$peer_pid" 2> /dev/null || fail 'connect ended'
  sleep 0.05
done
at peer ip route get "$web" | grep -q peervpn0 || fail 'the peer does not connect'
sleep 0.3
screen peer < "$dir/peer.log"
tail -n "+$((shown + 1))" "$dir/exit.log" | screen exit

say "4. The same requests now arrive with the exit's addresses."
asks "$exit_home" 2001:db8:e:1::2

say '5. Both stop (Ctrl-C).'
stop() { # PLACE PID
  local lines status=0
  lines=$(wc -l < "$dir/$1.log")
  kill -INT "$2"
  wait "$2" || status=$?
  tail -n "+$((lines + 1))" "$dir/$1.log" | screen "$1"
  [ "$status" = 0 ] || fail "$1 ended with exit status $status"
}
stop peer "$peer_pid"
stop exit "$exit_pid"

say '6. The peer asks once more: from its own NAT, as before.'
asks "$peer_home" 2001:db8:1:1::2

say '7. Links, addresses, routes, rules, firewall and kernel settings, before and after:'
for name in exit peer; do
  snapshot "$name" > "$dir/$name.after"
  diff "$dir/$name.before" "$dir/$name.after" || fail "the host of the $name is not as it was"
  echo "  $name: host unchanged ($(wc -l < "$dir/$name.before") lines compared)"
done
