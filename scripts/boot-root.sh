#!/usr/bin/env bash
# Boots a directory as the initial file system of a machine of its own, emulated by
# QEMU with Debian's packaged kernel, and prints its console until it is off.
# Its /init gets busybox as /bin/busybox, and ends with `reboot -f`.
# Usage: scripts/boot-root.sh DIRECTORY MEBIBYTES MINUTES, after `make programs`;
# FAKENITRO_QEMU names QEMU (default: what scripts/qemu.sh prints)
set -euo pipefail
root=$(cd "$1" && pwd) memory=$2 minutes=$3
cd "$(dirname "$0")/.."
qemu=${FAKENITRO_QEMU:-$(scripts/qemu.sh)}
mkdir -p "$root"/{bin,dev,proc,sys,tmp}
cp "$(command -v busybox)" "$root/bin/busybox"
initramfs=$(mktemp) && trap 'rm -f "$initramfs"' EXIT
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$initramfs"
timeout "${minutes}m" "$qemu" -M q35 -accel tcg -cpu max -smp 2 -m "$memory" -nodefaults -no-user-config -no-reboot \
    -display none -serial stdio -kernel target/kernel/bzImage -initrd "$initramfs" \
    -append 'console=ttyS0 quiet panic=-1 no_timer_check' </dev/null | sed -u 's/\r//g'
