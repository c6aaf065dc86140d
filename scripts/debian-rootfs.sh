#!/usr/bin/env bash
# Makes Debian's smallest root filesystem, as debootstrap does from packages, into a tar archive; without documentation
# and package lists, as container images leave them out. Does nothing when the archive is there.
# Usage: scripts/debian-rootfs.sh FILE.tar. Needs root.
set -euo pipefail

output=$1
[ -s "$output" ] && exit 0
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "debian-rootfs: debootstrap needs root, and there is no sudo" >&2; exit 69; }
    exec sudo --preserve-env=PATH "$0" "$@"
fi
# shellcheck disable=SC1091 # the system's own description of itself
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v suite="$codename" '$1 == suite && !found++ { print $2 }')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "debian-rootfs: debootstrap of $codename" >&2
debootstrap --variant=minbase "$codename" "$work/root" "$mirror" >"$work/log" || {
    tail -n 20 "$work/log" >&2
    exit 1
}
cd "$work/root"
rm -rf var/cache/apt/archives/*.deb var/cache/apt/*.bin var/lib/apt/lists/* var/log/* usr/share/{doc,info,locale,man} \
    dev/* proc/* sys/*
cd "$OLDPWD"
mkdir -p "$(dirname "$output")"
tar --numeric-owner --sort=name -cf "$output.part" -C "$work/root" .
mv "$output.part" "$output"
