#!/usr/bin/env bash
# Builds the enclave kernel and prints the path of its image. Cached by content:
# target/kernel/<hash of recipe and tools>/{bzImage,vmlinux,config}.
# Usage: eif/kernel/build.sh [--verify] [--arch x86_64|aarch64]
#   --verify  builds a second time in another directory and fails unless every
#             byte is the same; does nothing when that was shown for this hash
# JOBS (default: processors) is what make gets as -j.
set -euo pipefail
recipe=$(cd "$(dirname "$0")" && pwd)
cd "$recipe/../.."

verify=no arch=$(uname -m)
while [ $# -gt 0 ]; do
    case $1 in
        --verify) verify=yes ;;
        --arch) arch=${2:?--arch needs a value} && shift ;;
        *) echo "kernel: unknown argument $1" >&2; exit 64 ;;
    esac
    shift
done
case $arch in
    x86_64) kernel_arch=x86_64 image=arch/x86/boot/bzImage ;;
    aarch64) kernel_arch=arm64 image=arch/arm64/boot/Image ;;
    *) echo "kernel: no recipe for $arch" >&2; exit 64 ;;
esac
tools=''
[ "$arch" = "$(uname -m)" ] || tools=$arch-linux-gnu-
fragments=("$recipe/enclave.config" "$recipe/$arch.config")
patches=("$recipe"/patches/*.patch)
# shellcheck source=eif/kernel/source
. "$recipe/source"

main() {
    install_tools
    mkdir -p target/kernel
    exec 9>target/kernel/lock && flock 9 # two callers build once
    local cache
    cache=$PWD/target/kernel/$(recipe_hash)
    if [ ! -s "$cache/${image##*/}" ]; then
        fetch_source
        build "$cache"
    fi
    if [ "$verify" = yes ] && [ ! -e "$cache/verified" ]; then
        fetch_source
        build "$cache.again"
        cmp "$cache/${image##*/}" "$cache.again/${image##*/}"
        cmp "$cache/vmlinux" "$cache.again/vmlinux"
        rm -r "$cache.again" && touch "$cache/verified"
    fi
    echo "$cache/${image##*/}"
}

install_tools() {
    local missing=()
    declare -A package_of=([flex]=flex [bison]=bison [bc]=bc [xz]=xz-utils [lz4]=lz4 [patch]=patch [cmp]=diffutils [flock]=util-linux
        ["${tools}gcc"]="gcc${tools:+-${tools//_/-}}" [make]=make [perl]=perl [curl]=curl)
    for program in "${!package_of[@]}"; do
        command -v "$program" >/dev/null || missing+=("${package_of[$program]%-}")
    done
    [ -e /usr/include/libelf.h ] || missing+=(libelf-dev)
    [ ${#missing[@]} -eq 0 ] && return
    local sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    echo "kernel: installing ${missing[*]}" >&2
    "${sudo[@]}" apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Everything that decides the bytes. Host tools like flex do not.
recipe_hash() {
    {
        cat "$recipe/source" "${fragments[@]}" "${patches[@]}" "$recipe/build.sh"
        "${tools}gcc" --version | head -n 1
        "${tools}ld" --version | head -n 1
        lz4 --version
    } | sha256sum | cut -c 1-16
}

# The pinned package, from the machine's mirror, or from Debian's snapshots when
# the mirror has moved on.
fetch_source() {
    deb=$PWD/target/kernel/source/${package}_${version}_all.deb
    echo "$sha256  $deb" | sha256sum --check --status 2>/dev/null && return
    echo "kernel: downloading $package $version" >&2
    local apt
    apt=$(scripts/private-apt.sh target/kernel/apt "$suite")
    mkdir -p "${deb%/*}" && rm -f "$deb"
    APT_CONFIG=$apt apt-get update -qq >&2
    if ! (cd "${deb%/*}" && APT_CONFIG=$apt apt-get download -qq "$package=$version" >&2); then
        echo "kernel: not on the mirror any more, trying Debian's snapshots" >&2
        curl -fsSL --retry 3 -o "$deb" "https://snapshot.debian.org/file/$sha1"
    fi
    echo "$sha256  $deb" | sha256sum --check --status || { echo "kernel: $deb is not the pinned source" >&2; exit 65; }
}

# Builds in a fresh directory and moves the result to $1 when it is whole.
build() {
    local work
    work=$(mktemp -d "$PWD/target/kernel/build.XXXXXX")
    # shellcheck disable=SC2064 # the directory is known now
    trap "rm -rf '$work'" EXIT
    # A third of the files are of drivers that no enclave has.
    local unused=(drivers/gpu drivers/media drivers/net/ethernet drivers/net/wireless drivers/scsi drivers/staging sound tools/testing) excludes=()
    for directory in "${unused[@]}"; do excludes+=(--exclude "*/$directory/*.[ch]"); done
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work" --wildcards --to-stdout './usr/src/*.tar.xz' |
        tar -x -J -C "$work" --exclude '*/Documentation/*/*' "${excludes[@]}"
    (
        cd "$work"/linux-source-*
        # What the kernel would else take from the machine and the moment.
        unset MAKEFLAGS MAKELEVEL KCFLAGS KAFLAGS
        export LC_ALL=C TZ=UTC KBUILD_BUILD_TIMESTAMP='2020-01-01 00:00:00 UTC' KBUILD_BUILD_VERSION=1
        export KBUILD_BUILD_USER=enclave KBUILD_BUILD_HOST=enclave
        export ARCH=$kernel_arch CROSS_COMPILE=$tools
        cat "${patches[@]}" | patch --strip=1 --fuzz=0 --silent
        cat "${fragments[@]}" >fragment
        make -s KCONFIG_ALLCONFIG=fragment allnoconfig
        make -s olddefconfig
        check_fragment
        make -s -j "${JOBS:-$(nproc)}" "${image##*/}" vmlinux
        [ "$arch" != aarch64 ] || place_image "$image"
        mkdir result
        cp "$image" vmlinux result
        cp .config result/config
    ) >&2
    rm -rf "$1"
    mv "$work"/linux-source-*/result "$1"
    rm -rf "$work"
}

# A line that Kconfig dropped (renamed option, unmet dependency) fails the build.
check_fragment() {
    local line option lost=0
    while read -r line; do
        case $line in
            'CONFIG_'*) grep -qxF -- "$line" .config && continue ;;
            '# CONFIG_'*' is not set') option=${line#'# '} && ! grep -q "^${option%% *}=" .config && continue ;;
            *) continue ;;
        esac
        echo "kernel: lost from the fragment: $line" >&2 && lost=1
    done <fragment
    return $lost
}

# Nitro's loader on aarch64 puts the image at the address in its header (offset
# 8, little endian; Documentation/arch/arm64/booting.rst), which is 0 since Linux
# 5.10. AWS's build writes 2 MiB there, so this one does.
place_image() {
    printf '\0\0\040\0\0\0\0\0' | dd of="$1" bs=1 seek=8 conv=notrunc status=none
}

main
exit
