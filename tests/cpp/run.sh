#!/usr/bin/env bash
# Run the C++ tests under AddressSanitizer and UBSan, then those with real or emulated threads under
# ThreadSanitizer.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() { # sanitizers, regex of test names, build targets (default: all)
  cmake -S "$here" -B "$work/$1" -DSANITIZE="$1" >"$work/log" 2>&1 || { cat "$work/log"; return 1; }
  cmake --build "$work/$1" --parallel 2 ${3:+--target $3} >"$work/log" 2>&1 ||
    { cat "$work/log"; return 1; }
  (cd "$work/$1" && ctest --output-on-failure --tests-regex "$2")
}

run address,undefined '.*'
run thread "^(pool|team_.*)$" "test_pool test_team_assignment test_team_box_loss test_team_match"
