#!/usr/bin/env bash
# Packs enclave-node for nodes: an archive for `enclavectl render --node-package`
# (any distribution), a Debian package, and the device plugin's container image as
# an OCI layout in an archive. Same program, same bytes.
# Usage: scripts/node-package.sh PROGRAM DIRECTORY
set -euo pipefail

program=$1 out=$2
here=$(cd "$(dirname "$0")/.." && pwd)
version=$("$program" --version | awk '{ print $2 }')
case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) echo "node-package: no package for $(uname -m)" >&2; exit 69 ;; esac
epoch=${SOURCE_DATE_EPOCH:-0}
name=enclave-node-$version-$(uname -m)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
install -D -m 0755 "$program" "$tree/usr/bin/enclave-node"
install -D -m 0644 "$here/deploy/systemd/enclave-allocator.service" "$tree/usr/lib/systemd/system/enclave-allocator.service"
install -D -m 0644 "$here/deploy/udev/99-enclave-node.rules" "$tree/usr/lib/udev/rules.d/99-enclave-node.rules"
install -D -m 0644 /dev/stdin "$tree/usr/lib/modules-load.d/enclave-node.conf" <<<"nitro_enclaves"
install -D -m 0644 "$here/deploy/seccomp/enclave-shim.json" "$tree/var/lib/kubelet/seccomp/enclave-shim.json"
install -D -m 0644 "$here/LICENSE" "$tree/usr/share/doc/enclave-node/copyright"

# packed ARCHIVE DIRECTORY: neither order, times nor owners depend on the machine.
packed() {
    tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=gnu -C "$2" -cf - . | gzip -6n >"$1"
}

mkdir -p "$out"
packed "$out/$name.tar.gz" "$tree"

mkdir -p "$tree/DEBIAN"
cat >"$tree/DEBIAN/control" <<END
Package: enclave-node
Version: $version
Architecture: $arch
Maintainer: enclave-shim <enclave-shim@localhost>
Section: admin
Priority: optional
Description: Sets CPUs and huge pages of an instance aside for Nitro Enclaves
 The allocator, its systemd unit, the device's udev rule and the seccomp
 profile of enclave pods.
END
cat >"$tree/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
getent group ne >/dev/null || groupadd --system ne
END
chmod 0755 "$tree/DEBIAN/postinst"
SOURCE_DATE_EPOCH=$epoch dpkg-deb -Zgzip --root-owner-group --build "$tree" "$out/enclave-node_${version}_$arch.deb" >/dev/null

# One layer with one file, as an OCI image layout (image-spec 1.0).
layout=$work/layout root=$work/root
mkdir -p "$layout/blobs/sha256" "$root"
install -m 0755 "$program" "$root/enclave-node"
# blob FILE: moves it to its place and prints its digest and size.
blob() {
    local digest
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    echo "\"digest\":\"sha256:$digest\",\"size\":$(stat -c %s "$1")"
    mv "$1" "$layout/blobs/sha256/$digest"
}
packed "$work/layer" "$root"
diff=$(gzip -dc "$work/layer" | sha256sum | cut -d' ' -f1)
layer=$(blob "$work/layer")
printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/enclave-node"],"Cmd":["device-plugin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$arch" "$diff" >"$work/config"
config=$(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",%s}]}' \
    "$config" "$layer" >"$work/manifest"
manifest=$(blob "$work/manifest")
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' \
    "$manifest" "$version" >"$layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=gnu -C "$layout" -cf "$out/$name.oci.tar" .

(cd "$out" && sha256sum "$name.tar.gz" "enclave-node_${version}_$arch.deb" "$name.oci.tar")
