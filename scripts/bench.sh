#!/usr/bin/env bash
# Compares the relay with its peers and writes docs/performance.md's tables and picture.
# Usage: scripts/bench.sh [rounds] [bench run's further options]
# Needs root (fakenitro does), socat and perf or strace.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-5}
[ $# -gt 0 ] && shift
tools=target/tools
bin=target/$(rustc -vV | sed -n 's/^host: //p')/release
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT

cargo build --release -p bench -p emulator --bins
if [ ! -x $tools/bin/vsock-proxy ]; then
    cargo install vsock-proxy --version 0.1.2 --locked --root $tools
fi

"$bin/fakenitro" --large-writes off --state "$state/node" -- \
    "$bin/bench" run --rounds "$rounds" --tools $tools/bin --output target/figures.json "$@"
"$bin/bench" report target/figures.json --markdown docs/performance.md --svg docs/performance.svg
