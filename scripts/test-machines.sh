#!/usr/bin/env bash
# Runs the end-to-end tests again on fakenitro's qemu engine, where every image
# boots its own kernel, and other people's programs on both engines.
# Usage: scripts/test-machines.sh [kernel] [suite] [others], default all; after `make programs`.
set -euo pipefail
cd "$(dirname "$0")/.."
# What an engine changes: the enclave's life, its traffic, its confinement.
suite=(attested_tls confinement drain egress endings foreign hang_up introductions lifecycle logs main_job panic readiness
    shared_node workload_attestation)
# Not again: what ends before an image runs or is about the shim alone (bad_images,
# doctor, launch_faults, pins, planner, privilege), and what boots the same agent for
# a promise about files or words (compat, container_image, defaults).

# An emulated serial port and vsock need minutes for its million lines; what bounds
# them is the shim, which is the same on both engines.
skip=(a_flood_is_bounded_and_counted)

# shellcheck disable=SC2046 # one argument a name
run() { cargo test --workspace $(printf -- '--test %s ' "$@") -- $(printf -- '--skip %s ' "${skip[@]}"); }

# The recipe gives the bytes that were recorded for its hash; a hash that is not
# recorded is a changed recipe (or compiler), and has to give them twice.
check_kernel() {
    local hash measured
    hash=$(basename "$(dirname "$ENCLAVE_KERNEL")")
    measured=$(sha256sum "$ENCLAVE_KERNEL" "$(dirname "$ENCLAVE_KERNEL")/vmlinux" | cut -d ' ' -f 1 | tr '\n' ' ')
    measured="kernel $(uname -m) $hash ${measured% }"
    if ! grep -q "^kernel $(uname -m) $hash " eif/kernel/measurements; then
        echo "kernel: recipe $hash is not recorded, building it again" >&2
        eif/kernel/build.sh --verify >&2
        echo "kernel: twice the same bytes; for eif/kernel/measurements: $measured" >&2
    elif ! grep -qxF "$measured" eif/kernel/measurements; then
        echo "kernel: not the recorded bytes: $measured" >&2
        exit 1
    fi
}

[ $# -gt 0 ] || set -- kernel suite others
FAKENITRO_QEMU=$(scripts/qemu.sh)
ENCLAVE_KERNEL=$(eif/kernel/build.sh)
export FAKENITRO_QEMU ENCLAVE_KERNEL
for part in "$@"; do
    case $part in
        kernel)
            check_kernel
            scripts/measure-release.sh --check
            ;;
        suite)
            echo "test-machines: left out on the qemu engine, where it takes minutes: ${skip[*]}" >&2
            run machines
            FAKENITRO_ENGINE=qemu run "${suite[@]}"
            ;;
        others)
            AWS_TOOLS=$(scripts/aws-tools.sh)
            export AWS_TOOLS
            FAKENITRO_ENGINE=process run other_programs
            FAKENITRO_ENGINE=qemu run other_programs
            ;;
        *) echo "test-machines: $part is none of kernel, suite, others" >&2; exit 64 ;;
    esac
done
