#!/usr/bin/env bash
# Runs the tests that need true AF_VSOCK sockets in a machine of their own: Debian's
# packaged kernel, emulated by QEMU. Its vsock is in modules, which the agent of the
# first test loads from its image; nobody else does. The host's own AF_VSOCK is not
# touched, and nothing is said about speed.
# Usage: scripts/true-vsock.sh, after `make programs`. The console is kept in
# target/true-vsock/console.log.
set -euo pipefail
cd "$(dirname "$0")/.."
# Files of tests, in whatever crate and in this order; each prints `test result: ok`.
tests=(agent_on_true_vsock true_vsock sockets)
minutes=8
work=target/true-vsock
root=$work/root
bin=target/$(rustc -vV | sed -n 's/^host: //p')/debug

rm -rf "$work"
mkdir -p "$root/tests"
modules=()
for module in vsock vmw_vsock_virtio_transport_common vsock_loopback; do
    modules+=(--module "target/kernel/modules/$module.ko")
done
# This machine has no NSM, hence no attested TLS.
sed 's/, 8443//; /^attested_tls:/d' examples/hello/enclave.yaml >"$work/enclave.yaml"
"$bin/enclavectl" build --rootfs target/hello-rootfs --kernel target/kernel/bzImage "${modules[@]}" \
    --app "$work/enclave.yaml" -o "$root/hello.eif" >/dev/null

# shellcheck disable=SC2046 # one argument a name
cargo test --workspace --no-run $(printf -- '--test %s ' "${tests[@]}") 2>&1 | tee "$work/build.log" >&2
number=0
for name in "${tests[@]}"; do
    before=$number
    # One program of each crate that has a file of this name.
    while read -r program; do
        number=$((number + 1))
        # Without symbols: what is loaded into memory should be small.
        strip -o "$root/tests/$number-$name" "$program"
    done < <(sed -n "s/.*Executable .*(\(.*\/$name-[0-9a-f]*\))$/\1/p" "$work/build.log")
    [ "$number" -gt "$before" ] || { echo "true-vsock: no test program $name was built" >&2; exit 70; }
done

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
ip link set lo up
ulimit -n 65536
export TRUE_VSOCK=1 TRUE_VSOCK_IMAGE=/hello.eif
for program in /tests/*; do
    echo "== $program"
    $program --nocapture 2>&1
    echo "== $program: exit $?"
done
echo "== machine: done"
reboot -f
INIT
chmod +x "$root/init"
scripts/boot-root.sh "$root" 1024 "$minutes" | tee "$work/console.log"

passed=$(grep -c '^== .*: exit 0$' "$work/console.log" || true)
if ! grep -q '^== machine: done' "$work/console.log" || [ "$passed" != "$number" ] || grep -q SKIPPED "$work/console.log"; then
    echo "true-vsock: $passed of $number test programs passed, see above" >&2
    exit 1
fi
echo "true-vsock: $number test programs passed over true AF_VSOCK sockets"
