#!/usr/bin/env bash
# Runs a command with at least COUNT free 2 MiB huge pages, and gives them back.
# Usage: scripts/with-huge-pages.sh COUNT COMMAND...
set -euo pipefail
count=$1
shift
pool=/proc/sys/vm/nr_hugepages
before=$(cat $pool)
free=$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages)
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)

set_pool() { echo "$1" | "${sudo[@]}" tee $pool >/dev/null; }

if [ "$free" -lt "$count" ]; then
    # Only ever back to what was found: another run may have raised the pool meanwhile.
    trap 'set_pool "$before"' EXIT
    set_pool $((before + count - free))
    free=$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages)
    if [ "$free" -lt "$count" ]; then
        echo "huge pages: need $count of 2 MiB, the kernel gave $free: free memory or reboot (fragmentation)" >&2
        exit 71
    fi
fi
"$@"
