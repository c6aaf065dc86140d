#!/usr/bin/env bash
# Puts a wrapper at target/qemu/qemu-system-x86_64 that runs a QEMU able to host an
# enclave, and prints that path. The system's QEMU is used when it can; else
# Debian's backport is unpacked under target/qemu with its own loader and
# libraries. Nothing is installed.
#
# Able means: machine microvm, and the devices vhost-user-vsock-device and
# vhost-user-test-device, which QEMU has since 10.2 (10.0 calls the latter
# vhost-user-device and refuses to create it).
set -euo pipefail
cd "$(dirname "$0")/.."
directory=$PWD/target/qemu
wrapper=$directory/qemu-system-x86_64
suites=(trixie trixie-backports)

able() {
    local machines devices
    machines=$("$1" -machine help 2>/dev/null) && devices=$("$1" -machine none -device help 2>/dev/null) || return 1
    [[ $machines == *microvm* && $devices == *'"vhost-user-vsock-device"'* && $devices == *'"vhost-user-test-device"'* ]]
}

# Writes the wrapper; its body, the lines of standard input, ends in an exec.
write_wrapper() {
    { echo '#!/bin/sh' && cat; } >"$wrapper.new"
    chmod +x "$wrapper.new"
    mv "$wrapper.new" "$wrapper"
}

unpack_backport() {
    local apt root=$directory/root interpreter libraries
    apt=$(scripts/private-apt.sh "$directory/apt" "${suites[@]}")
    export APT_CONFIG=$apt
    apt-get update -qq >&2
    # qemu-system-x86's dependencies down to the C library, because the private
    # apt counts nothing as installed.
    apt-get install -qq --no-install-recommends --download-only --yes -t "${suites[-1]}" qemu-system-x86 >&2
    rm -rf "$root.new" && mkdir -p "$root.new"
    for package in "$directory"/apt/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$root.new" --keep-directory-symlink --exclude './usr/share/doc/*' --exclude './usr/share/man/*' --exclude './usr/share/locale/*'
    done
    (cd "$directory/apt/cache/archives" && ls ./*.deb) | sed 's|^\./||' >"$directory/packages"
    rm -rf "$root" "$directory/apt" && mv "$root.new" "$root"
    interpreter=$(find "$root"/usr/lib* -name 'ld-linux-*.so.*' | sed -n 1p)
    libraries=$(dirname "$(find "$root/usr/lib" -name libc.so.6)")
    write_wrapper <<END
export QEMU_MODULE_DIR='$libraries/qemu'
exec '$interpreter' --library-path '$libraries' --argv0 qemu-system-x86_64 '$root/usr/bin/qemu-system-x86_64' -L '$root/usr/share/qemu' -L '$root/usr/share/seabios' "\$@"
END
}

if ! able "$wrapper"; then
    mkdir -p "$directory"
    exec 9>"$directory/lock" && flock 9 # two callers unpack once
    if able "$wrapper"; then
        :
    elif system=$(command -v qemu-system-x86_64) && able "$system"; then
        echo "exec '$system' \"\$@\"" | write_wrapper
    else
        echo "qemu: the system has none from 10.2 on; unpacking Debian's under target/qemu" >&2
        unpack_backport
        able "$wrapper" || { echo "qemu: $("$wrapper" --version 2>&1 | sed -n 1p) cannot host an enclave" >&2; exit 69; }
    fi
fi
echo "$wrapper"
