#!/usr/bin/env bash
# Installs what the build and the tests need on Debian 12, and only what is missing.
# Usage: scripts/setup.sh build|test|machines
set -euo pipefail

declare -A package_of=([cc]='gcc libc6-dev' [make]=make [dpkg-deb]=dpkg [pgrep]=procps [curl]=curl [openssl]=openssl)
if [ "${1:-build}" = test ]; then
    package_of+=([pkg-config]=pkg-config [python3]=python3 [socat]=socat [cpio]=cpio [ip]=iproute2 [strace]=strace
        [busybox]=busybox-static [skopeo]=skopeo [umoci]=umoci [zstd]=zstd [debootstrap]=debootstrap [go]=golang-go [runc]=runc)
fi
if [ "${1:-build}" = machines ]; then
    package_of+=([python3]=python3 [cpio]=cpio [busybox]=busybox-static [strip]=binutils [xz]=xz-utils [pkg-config]=pkg-config)
fi

command -v cargo >/dev/null || {
    echo "setup: cargo is missing: install a stable Rust toolchain (1.91 or newer) first" >&2
    exit 69
}

missing=()
for program in "${!package_of[@]}"; do
    # shellcheck disable=SC2206 # one program may need several packages
    command -v "$program" >/dev/null || missing+=(${package_of[$program]})
done
if [ "${1:-build}" = test ]; then
    # Only clients are on the path: the server's programs lie in a directory of its version.
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
    # No programs: a Go library, and the module with which Python makes its environments.
    [ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
    [ -d /usr/share/gocode/src/google.golang.org/grpc ] || missing+=(golang-google-grpc-dev)
    if command -v python3 >/dev/null; then python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv); else missing+=(python3-venv); fi
fi
# AWS's own programs link OpenSSL.
if [ "${1:-build}" = machines ] && [ ! -e /usr/include/openssl/ssl.h ]; then missing+=(libssl-dev); fi
[ ${#missing[@]} -eq 0 ] && exit 0

sudo=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "setup: not root and no sudo: install ${missing[*]} by hand" >&2; exit 69; }
    sudo=(sudo)
fi
echo "setup: installing ${missing[*]}" >&2
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
