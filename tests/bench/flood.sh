#!/bin/bash
# What 50,000 forged handshake initiations a second do to an exit: how long peers take to join, what goes through, memory.
# A table line each for strangers who do not know the exit's key (wrong mac1) and for those who have its connect string.
#
#   tests/bench/flood.sh [userspace|kernel] [ROUNDS]      # default: userspace, 1; kernel runs under tests/vm/run
#
# It is tests/lab/strangers.rs with PEERVPN_FLOOD=1: three newcomers and one known peer a round. PEERVPN names the binary
# (default: the release build). "without node": the exit's node is stopped meanwhile, WireGuard and firewall stay.
set -eu
cd "$(dirname "$0")/../.."
backend=${1:-userspace} rounds=${2:-1}
target=${CARGO_TARGET_DIR:-target}
PEERVPN_BIN=${PEERVPN:-$target/release/peervpn}
[ "$(id -u)" = 0 ] || { echo "SKIP: root"; exit 0; }
[ -x "$PEERVPN_BIN" ] || { echo "flood.sh: no $PEERVPN_BIN (cargo build --release, or PEERVPN=…)" >&2; exit 1; }
PEERVPN_BIN=$(realpath "$PEERVPN_BIN")
export PEERVPN_BIN PEERVPN_FLOOD=1 PEERVPN_TEST_BACKEND=$backend
lab=$(cargo test --no-run --test lab --message-format=json-render-diagnostics |
  sed -n 's/.*"name":"lab".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$lab" ] || { echo "flood.sh: cargo built no lab test" >&2; exit 1; }
run=("$lab" --nocapture --test-threads 1 strangers_)
[ "$backend" = userspace ] || run=(tests/vm/run --timeout 400 "${run[@]}")

out=$(mktemp)
trap 'rm -f "$out"' EXIT
for _ in $(seq "$rounds"); do
  "${run[@]}" >> "$out" 2>&1 || { cat "$out" >&2; exit 1; }
done
if ! grep -q '^.*FLOOD ' "$out"; then
  grep SKIP "$out" || cat "$out"
  exit 0
fi
# fields are NAME=VALUE behind the word FLOOD and the kind of forgery
sed -n 's/.*FLOOD //p' "$out" | tr -d '%,[]' | awk -v backend="$backend" '
  function median(list, n,  values, i, j, t) {
    n = split(list, values, " ")
    for (i = 2; i <= n; i++) for (j = i; j > 1 && values[j - 1] + 0 > values[j] + 0; j--) { t = values[j]; values[j] = values[j - 1]; values[j - 1] = t }
    return n == 0 ? "-" : n % 2 ? values[(n + 1) / 2] : int((values[n / 2] + values[n / 2 + 1]) / 2)
  }
  {
    kind = $1; kinds[kind]; name = ""
    for (i = 2; i <= NF; i++) {
      if (split($i, part, "=") == 2) { name = part[1]; value = part[2] } else value = $i
      if (name == "memory_kb") { split(value, range, /\.\./); value = range[2] - range[1] }
      all[kind, name] = all[kind, name] " " value
      if (value + 0 > most[kind, name] + 0) most[kind, name] = value
    }
  }
  function ratio(a, b) { return b > 0 ? sprintf("%.2f", a / b) : "-" }
  END {
    print "| flood | back end | initiations/s | join ms: median, worst | known peer ms | of a steady stream arrives | TCP Mbit/s: quiet, flood, flood without node | flood / without node | node busy | memory kB | connections |"
    print "|---|---|---|---|---|---|---|---|---|---|---|"
    for (kind in kinds) {
      flood = median(all[kind, "mbit_flood"]); without = median(all[kind, "mbit_flood_without_node"])
      printf "| %s | %s | %s | %s, %s | %s | %s %% | %s, %s, %s | %s | %s %% | +%s | %s |\n", \
        kind == "WrongMac1" ? "wrong mac1" : "right mac1, random static key", backend, median(all[kind, "rate"]), \
        median(all[kind, "join_ms"]), most[kind, "join_ms"], median(all[kind, "known_ms"]), median(all[kind, "arriving"]), \
        median(all[kind, "mbit_quiet"]), flood, without, ratio(flood, without), median(all[kind, "node_busy"]), most[kind, "memory_kb"], most[kind, "connections"]
    }
  }'
