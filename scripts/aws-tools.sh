#!/usr/bin/env bash
# Builds AWS's own programs, as published, for the tests that run our images with
# them and theirs with us: nitro-cli and eif_build. Prints their directory.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/target/tools
# Programs and the crates that carry them.
programs=(nitro-cli eif_build)
declare -A crate=([nitro-cli]=aws-nitro-enclaves-cli@1.5.2 [eif_build]=eif_build@0.2.1)

for program in "${programs[@]}"; do
    [ ! -x "$root/bin/$program" ] || continue
    # They are tested, not measured: what is not optimised builds in half the time.
    # Hashing is what they spend their own on.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$root/build cargo install --quiet --debug --locked --root "$root" \
        --config 'profile.dev.package.sha2.opt-level=3' --config 'profile.dev.package.crc.opt-level=3' "${crate[$program]}" >&2
done
echo "$root/bin"
