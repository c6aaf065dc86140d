#!/usr/bin/env bash
# Makes the root filesystem of examples/hello: one static program and its users.
# Usage: scripts/rootfs.sh HELLO_BINARY DIRECTORY
set -euo pipefail
umask 022
binary=$1
root=$2
# Owners are part of the image, hence of PCR2: everything is root's, whoever builds.
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)
"${sudo[@]}" rm -rf "$root"
mkdir -p "$root"/{etc,tmp,run,proc,sys,dev}
install -m 0755 "$binary" "$root/hello"
cat >"$root/etc/passwd" <<'USERS'
root:x:0:0:root:/:/bin/false
app:x:1000:1000:app:/:/bin/false
USERS
cat >"$root/etc/group" <<'GROUPS'
root:x:0:
app:x:1000:
GROUPS
chmod 1777 "$root/tmp"
"${sudo[@]}" chown -R 0:0 "$root"
