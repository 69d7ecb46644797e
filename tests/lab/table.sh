#!/bin/sh
# Prints the table of passes that the last runs of the lab left: table.sh [DIR]
# DIR has one directory a run (userspace, kernel, uml/kernel, …), with one file a test: result and seconds.
dir=${1:-${CARGO_TARGET_DIR:-target}/tmp/lab}
[ -d "$dir" ] || { echo "no results in $dir: run cargo test --test lab first" >&2; exit 1; }
cd "$dir" || exit 1
runs=$(find . -type f | sed 's|^\./||; s|/[^/]*$||' | sort -u)
printf '%-62s' test
for run in $runs; do printf ' %14s' "$run"; done
echo
find . -type f | sed 's|.*/||' | sort -u | while read -r test; do
  printf '%-62s' "$test"
  for run in $runs; do
    if [ -f "$run/$test" ]; then
      read -r result seconds < "$run/$test"
      printf ' %14s' "$result ${seconds}s"
    else
      printf ' %14s' -
    fi
  done
  echo
done
for run in $runs; do
  printf '%s: %s passed, %s failed, %s skipped\n' "$run" "$(cat "$run"/* | grep -c ^pass)" \
    "$(cat "$run"/* | grep -c ^FAIL)" "$(cat "$run"/* | grep -c ^skip)"
done
