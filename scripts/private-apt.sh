#!/usr/bin/env bash
# Makes a private apt under a directory: its own suites, lists and cache, none of
# the machine's state. Prints the path of its configuration, for APT_CONFIG.
# The mirrors are the ones of the machine's own sources, with the suite replaced.
# Usage: scripts/private-apt.sh DIRECTORY SUITE...
set -euo pipefail

directory=$(mkdir -p "$1" && cd "$1" && pwd) && shift
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -s "$keyring" ] || { echo "private-apt: $keyring is missing: install debian-archive-keyring" >&2; exit 69; }
# shellcheck disable=SC1091 # the system's own description of itself
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")

# Address of the archive that carries the machine's suite $1; known from the
# sources alone, so it works before the machine's first `apt-get update`.
mirror_of() {
    # shellcheck disable=SC2016 # apt fills these in
    apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v suite="$1" '$1 == suite && !found++ { print $2 }'
}

mkdir -p "$directory/lists/partial" "$directory/cache/archives/partial"
: >"$directory/status" # nothing is installed: every dependency is listed
: >"$directory/sources.list"
for suite in "$@"; do
    case $suite in
        *-security) mirror=$(mirror_of "$codename-security") ;;
        *) mirror=$(mirror_of "$codename") ;;
    esac
    [ -n "$mirror" ] || { echo "private-apt: the machine's apt sources name no archive of $codename for $suite" >&2; exit 69; }
    echo "deb [signed-by=$keyring] $mirror $suite main" >>"$directory/sources.list"
done

cat >"$directory/apt.conf" <<END
Dir::Etc::SourceList "$directory/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$directory";
Dir::State::Lists "$directory/lists";
Dir::State::Status "$directory/status";
Dir::Cache "$directory/cache";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "$(id -un)";
END
echo "$directory/apt.conf"
