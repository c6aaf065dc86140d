#!/usr/bin/env bash
# PCR1 of a release: the enclave kernel, the default command line, and the agent as
# a release build gives it. Prints the line of eif/kernel/measurements.
# Usage: scripts/measure-release.sh [--check], after `make programs`
#   --check  fails if a line of the same version, kernel, sources and compiler is
#            recorded there with another agent or another PCR1; checks nothing
#            where there is none
set -euo pipefail
cd "$(dirname "$0")/.."
kernel=$(eif/kernel/build.sh)
triple=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
crates=(enclave-app attestation egress wire relay nitro-device)
source=$(find "${crates[@]/%//src}" "${crates[@]/%//Cargo.toml}" Cargo.toml Cargo.lock -type f | LC_ALL=C sort |
    xargs sha256sum | sha256sum | cut -c 1-16)
# The agent holds C code (its cryptography, libc): compiler, linker and libc decide its bytes too.
# sed, not head: ldd is a script of many writes, and dies of SIGPIPE when its reader leaves.
tools=$(for tool in cc ld ldd; do "$tool" --version | sed -n 1p; done | sha256sum | cut -c 1-16)
inputs="release $version $(uname -m) kernel=$(basename "$(dirname "$kernel")") source=$source"
inputs+=" rustc=$(rustc -V | cut -d ' ' -f 2) tools=$tools"
if [ "${1:-}" = --check ] && ! grep -q "^$inputs " eif/kernel/measurements; then
    echo "measure-release: no release of these sources is recorded, nothing to compare" >&2
    exit 0
fi
# The agent must not carry the path of whoever builds it. RUSTFLAGS takes the
# place of .cargo/config.toml's.
RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=/src --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
    cargo build --quiet --release --locked -p enclave-app --target "$triple" --target-dir target/measured
agent=target/measured/$triple/release/enclave-app
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
mkdir "$work/rootfs" && touch "$work/rootfs/app" && chmod +x "$work/rootfs/app"
printf 'name: measured\nversion: "1"\nentrypoint: [/app]\n' >"$work/enclave.yaml"
pcr1=$("target/$triple/debug/enclavectl" build --rootfs "$work/rootfs" --kernel "$kernel" --agent "$agent" \
    --app "$work/enclave.yaml" -o "$work/image.eif" 2>"$work/log" | sed -n 's/.*"PCR1": *"\([0-9a-f]*\)".*/\1/p')
[ ${#pcr1} = 96 ] || { echo "measure-release: no PCR1 came out of enclavectl build: $(cat "$work/log")" >&2; exit 70; }
line="$inputs agent=$(sha256sum "$agent" | cut -c 1-64) pcr1=$pcr1"
echo "$line"

if [ "${1:-}" = --check ] && ! grep -qxF "$line" eif/kernel/measurements; then
    echo "measure-release: recorded is $(grep "^$inputs " eif/kernel/measurements)" >&2
    exit 1
fi
