#!/usr/bin/env bash
# Runs every fuzz target for SECONDS each (default 60).
# Usage: scripts/fuzz.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
tools=target/tools
[ -x $tools/bin/cargo-fuzz ] || cargo install --quiet --locked --root $tools cargo-fuzz
# cargo-fuzz asks for a nightly compiler's flags; a stable one accepts them like this.
export RUSTC_BOOTSTRAP=1
for target in fuzz/fuzz_targets/*.rs; do
    name=$(basename "$target" .rs)
    mkdir -p "fuzz/corpus/$name"
    seeds=()
    [ ! -d "fuzz/seeds/$name" ] || seeds=("fuzz/seeds/$name")
    echo "fuzz: $name for ${1:-60} s" >&2
    $tools/bin/cargo-fuzz fuzz run "$name" --fuzz-dir fuzz "fuzz/corpus/$name" "${seeds[@]}" -- \
        -max_total_time="${1:-60}" -timeout=10
done
