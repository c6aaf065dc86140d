#!/usr/bin/env bash
# Puts Debian's packaged cloud kernel at target/kernel/bzImage and prints that path;
# its vsock modules, for scripts/true-vsock.sh, go to target/kernel/modules.
# The package is downloaded and unpacked there, nothing is installed: the image's
# kernel is measured, but fakenitro's process engine does not run it.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=target/kernel
kernel=$directory/bzImage
if [ ! -s "$kernel" ] || [ ! -d "$directory/modules" ]; then
    mkdir -p "$directory"
    # shellcheck disable=SC2064 # the directory is known now
    work=$(mktemp -d "$directory/download.XXXXXX") && trap "rm -rf '$work'" EXIT
    meta=linux-image-cloud-$(dpkg --print-architecture)
    package_of_meta() { apt-cache depends "$meta" 2>/dev/null | awk '/Depends: linux-image/ && !found++ { print $2 }'; }
    download() { local package; package=$(package_of_meta) && [ -n "$package" ] && (cd "$work" && apt-get download -qq "$package" 2>/dev/null); }
    if ! download; then
        # The package lists are missing or older than the archive.
        if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
        download || { echo "kernel: cannot download the package that $meta depends on" >&2; exit 69; }
    fi
    dpkg-deb --fsys-tarfile "$work"/linux-image-*.deb |
        tar -x -C "$work" --wildcards './boot/vmlinuz-*' '*/net/vmw_vsock/*vsock*.ko*'
    mkdir "$work/modules"
    find "$work" -path '*/vmw_vsock/*' -type f -exec mv -t "$work/modules" {} +
    find "$work/modules" -name '*.xz' -exec xz -d {} +
    rm -rf "$directory/modules" && mv "$work/modules" "$directory/modules"
    mv "$work"/boot/vmlinuz-* "$kernel"
fi
echo "$kernel"
