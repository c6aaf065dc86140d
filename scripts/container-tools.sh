#!/usr/bin/env bash
# Puts what tests need of Debian's packages for containers under a directory, without installing them: docker.io and
# docker-registry would start daemons of their own. Does nothing when it is all there.
# Usage: scripts/container-tools.sh DIRECTORY; programs are in DIRECTORY/usr/bin and DIRECTORY/usr/sbin.
set -euo pipefail
cd "$(dirname "$0")/.."

directory=$(mkdir -p "$1" && cd "$1" && pwd)
packages=(docker.io docker-registry containerd runc tini libdevmapper1.02.1)
[ "$(cat "$directory/packages" 2>/dev/null)" = "${packages[*]}" ] && exit 0

echo "container-tools: fetching ${packages[*]}" >&2
# shellcheck disable=SC1091 # the system's own description of itself
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
APT_CONFIG=$(scripts/private-apt.sh "$directory/apt" "$codename")
export APT_CONFIG
apt-get update -qq
mkdir -p "$directory/debs"
(cd "$directory/debs" && apt-get download -qq "${packages[@]}")
for package in "$directory"/debs/*.deb; do
    dpkg-deb -x "$package" "$directory"
done
rm -r "$directory/debs" "$directory/apt"
echo "${packages[*]}" >"$directory/packages"
