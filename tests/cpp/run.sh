#!/usr/bin/env bash
# Run the C++ tests under AddressSanitizer and UBSan; those with real or emulated threads under
# ThreadSanitizer; and those of the CPU's code as an ARM processor runs it, where there are a cross
# compiler and an emulator (Debian: g++-aarch64-linux-gnu and qemu-user).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() { # name, regex of test names, build targets, options of cmake
  local name=$1 tests=$2 targets=$3
  shift 3
  # Targets are words of their own.
  # shellcheck disable=SC2086
  { cmake -S "$here" -B "$work/$name" "$@" &&
    cmake --build "$work/$name" --parallel 2 --target $targets; } >"$work/log" 2>&1 ||
    { cat "$work/log"; return 1; }
  (cd "$work/$name" && ctest --parallel 2 --output-on-failure --tests-regex "$tests")
}

run address '.*' all -DSANITIZE=address,undefined
run thread '^(pool|team_.*)$' 'test_pool test_team_assignment test_team_box_loss test_team_match' \
  -DSANITIZE=thread
if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
  run arm '^kernels_plain$' test_kernels \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static \
    -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64
else
  echo 'NO ARM: there is no aarch64-linux-gnu-g++ or no qemu-aarch64, so nothing here runs its code.'
fi
