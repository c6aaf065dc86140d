#!/usr/bin/env bash
# The whole main job, one line a step: image, launch, traffic, attestation, drain.
# Usage: scripts/demo.sh DIRECTORY_OF_PROGRAMS. Needs 32 free 2 MiB huge pages and root.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "$1")
page=http://127.0.0.1:18080
shim_http=http://127.0.0.1:19090
attested=127.0.0.1:18443

if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "demo: fakenitro needs root, and there is no sudo" >&2; exit 69; }
    exec sudo --preserve-env=PATH "$0" "$bin"
fi

work=$(mktemp -d)
mounts_before=$(sort /proc/self/mounts)
pages_before=$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages)
shim=
tunnel=
cleanup() {
    [ -z "$tunnel" ] || ! kill -0 "$tunnel" 2>/dev/null || kill -KILL "$tunnel"
    [ -z "$shim" ] || ! kill -0 "$shim" 2>/dev/null || kill -KILL "$shim"
    rm -rf "$work"
}
trap cleanup EXIT

step() { printf '\033[1m%-10s\033[0m %s\n' "$1" "$2"; }
fail() {
    echo "demo: $*" >&2
    [ ! -s "$work/shim.log" ] || sed 's/^/    shim: /' "$work/shim.log" >&2
    exit 1
}
# within SECONDS COMMAND...: repeats until it succeeds.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" 2>/dev/null; do
        [ $SECONDS -lt $deadline ] || return 1
        [ -z "$shim" ] || kill -0 "$shim" 2>/dev/null || return 1
        read -rt 0.05 <> <(:) || true
    done
}

"$bin/enclavectl" build --rootfs target/hello-rootfs --kernel target/kernel/bzImage \
    --app examples/hello/enclave.yaml -o "$work/hello.eif" >"$work/measurements.json" 2>"$work/build.log" ||
    fail "enclavectl build: $(cat "$work/build.log")"
step build "hello.eif, $(stat -c %s "$work/hello.eif") bytes, from examples/hello and Debian's kernel"

"$bin/enclavectl" inspect "$work/hello.eif" --json >"$work/inspect.json" || fail "enclavectl inspect"
pcr0=$(grep -o '"PCR0": *"[0-9a-f]*"' "$work/inspect.json" | cut -d'"' -f4)
[ ${#pcr0} = 96 ] && grep -q "$pcr0" "$work/measurements.json" || fail "inspect and build disagree on PCR0"
step inspect "PCR0 ${pcr0:0:16}… (as the build printed it)"

"$bin/fakenitro" --state "$work/node" -- \
    "$bin/enclave-shim" run --eif "$work/hello.eif" --config examples/hello/shim.yaml >"$work/shim.log" 2>&1 &
shim=$!
within 20 curl -sf -o /dev/null "$shim_http/readyz" || fail "not ready within 20 s"
step run "enclave-shim under fakenitro: $(curl -s "$shim_http/readyz")"

curl -sf "$page/" >"$work/page" || fail "no page through the ingress"
step ingress "GET / answers: $(sed 's/<title>.*<.title>//; s/<[^>]*>//g' "$work/page" | sed -n 1p)"

nonce=$(openssl rand -hex 32)
curl -sf -H 'Accept: application/cbor' "$shim_http/v1/attestation?nonce=$nonce" -o "$work/document.cbor" ||
    fail "no attestation document"
step attest "document of $(stat -c %s "$work/document.cbor") bytes for nonce ${nonce:0:16}…"

"$bin/enclavectl" verify "$work/document.cbor" --root-pem "$work/node/dev-root.pem" --nonce "$nonce" \
    --eif "$work/hello.eif" >"$work/verdict" 2>&1 || fail "enclavectl verify: $(cat "$work/verdict")"
step verify "$(head -n 1 "$work/verdict"): $(grep -m 1 -i 'module' "$work/verdict" | tr -s ' ')"
other=$(openssl rand -hex 32)
! "$bin/enclavectl" verify "$work/document.cbor" --root-pem "$work/node/dev-root.pem" --nonce "$other" \
    --eif "$work/hello.eif" >"$work/verdict" 2>&1 || fail "a document for another nonce was accepted"
step refuse "another nonce: $(head -n 1 "$work/verdict")"

"$bin/enclavectl" tls-tunnel --connect $attested --listen 127.0.0.1:18444 --root-pem "$work/node/dev-root.pem" \
    --eif "$work/hello.eif" >"$work/tunnel" 2>&1 &
tunnel=$!
within 10 grep -q listening "$work/tunnel" || fail "enclavectl tls-tunnel: $(cat "$work/tunnel")"
curl -sf http://127.0.0.1:18444/ >"$work/page" || fail "no page through the tunnel"
kill "$tunnel" && wait "$tunnel" || true
tunnel=
! curl -sf --max-time 5 "http://$attested/" >/dev/null || fail "the attested port answers without TLS"
step tunnel "curl over attested TLS: $(sed 's/<title>.*<.title>//; s/<[^>]*>//g' "$work/page" | sed -n 1p)"

curl -sf "$page/slow/500" >"$work/slow" & request=$!
within 5 sh -c "curl -sf $shim_http/metrics | grep -q '^enclave_shim_ingress_connections_open.* 1$'" ||
    fail "the slow request never arrived"
kill -TERM "$shim"
wait "$request" || fail "the request in flight was cut by the drain"
code=0
wait "$shim" || code=$?
shim=
[ "$code" = 0 ] || { cat "$work/shim.log" >&2; fail "the shim exited $code after SIGTERM"; }
step drain "SIGTERM: the request in flight finished, the workload exited, exit code $code"

enclave_gone() { ! pgrep -f "$work/node" >/dev/null; }
within 5 enclave_gone || fail "processes are left: $(pgrep -af "$work/node")"
[ "$(sort /proc/self/mounts)" = "$mounts_before" ] || fail "mounts are left"
pages_back() { [ "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages)" -ge "$pages_before" ]; }
within 5 pages_back || fail "huge pages are left in use"
step clean "no process, mount or huge page is left"
