#!/usr/bin/env bash
# Prints containerd 1.7's default seccomp profile as JSON into FILE, as kubelet's
# RuntimeDefault makes containerd use it. The profile is code, and Debian 12's own
# containerd (1.6) still allows AF_VSOCK: Debian 13's library is taken, and nothing installed.
# Usage: scripts/default-seccomp.sh FILE
set -euo pipefail

file=$1
[ -s "$file" ] && exit 0
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
APT_CONFIG=$("$here/private-apt.sh" "$work/apt" trixie)
export APT_CONFIG
apt-get update -qq
(cd "$work" && apt-get download -qq golang-github-containerd-containerd-dev golang-github-opencontainers-specs-dev golang-golang-x-sys-dev)
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done

# Its options for containerd's clients need half of containerd; the profile needs none of it.
rm "$work/root/usr/share/gocode/src/github.com/containerd/containerd/contrib/seccomp/seccomp.go"

cat >"$work/main.go" <<'END'
package main

import (
	"encoding/json"
	"os"

	"github.com/containerd/containerd/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A container that has dropped all capabilities.
func main() {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
	json.NewEncoder(os.Stdout).Encode(seccomp.DefaultProfile(spec))
}
END
GO111MODULE=off GOFLAGS= GOPATH="$work/root/usr/share/gocode" GOCACHE="$work/cache" go run "$work/main.go" >"$work/profile.json"
mkdir -p "$(dirname "$file")"
mv "$work/profile.json" "$file"
