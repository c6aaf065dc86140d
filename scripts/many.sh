#!/usr/bin/env bash
# Ten thousand connections at once through one shim (tests/many.rs) where this machine's
# limit of open files is below two for each and cannot be raised: in a machine of its
# own, emulated, which takes ten to fifteen minutes. Nothing is said about speed.
# Usage: scripts/many.sh, after `make programs`. The console is kept in target/many/console.log.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=40
work=target/many
root=$work/root
bin=$PWD/target/$(rustc -vV | sed -n 's/^host: //p')/debug

rm -rf "$work"
mkdir -p "$root$bin" "$root$PWD/target/kernel"
program=$(cargo test --workspace --no-run --test many 2>&1 | tee /dev/stderr | sed -n 's/.*Executable .*(\(.*\/many-[0-9a-f]*\))$/\1/p')
[ -x "$program" ] || { echo "many: no test program was built" >&2; exit 70; }
# The test finds them where they were built. Without symbols: all of it is in memory twice.
strip -o "$root/many" "$program"
for each in enclave-shim fakenitro enclavectl enclave-app bench; do strip -o "$root$bin/$each" "$bin/$each"; done
cp target/kernel/bzImage "$root$PWD/target/kernel/"

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
# Nobody can leave the initial root with pivot_root(2), as fakenitro's enclaves do.
if [ ! -e /real ]; then
    mkdir /real-root && mount -t tmpfs -o size=2g root /real-root && mkdir /real-root/real
    for each in /*; do
        case $each in /dev | /proc | /sys | /tmp | /real-root) mkdir "/real-root$each" ;; *) cp -a "$each" /real-root ;; esac
    done
    exec switch_root /real-root /init
fi
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
echo 128 >/proc/sys/vm/nr_hugepages
/many --nocapture 2>&1
echo "== machine: exit $?"
reboot -f
INIT
chmod +x "$root/init"
scripts/boot-root.sh "$root" 3072 "$minutes" | tee "$work/console.log"

grep -q '^== machine: exit 0$' "$work/console.log" && ! grep -q REDUCED "$work/console.log" || {
    echo "many: the test failed in the machine, see above" >&2
    exit 1
}
