#!/bin/sh
# Installs what sandboxes need: bubblewrap for local ones, and the Debian packages of the base image.
#
#   setup.sh            as root on Debian, install missing packages by apt; otherwise print what is missing
#
# This does not install Docker: tests that need a daemon start one with dockerd.sh.
set -eu

wanted="bubblewrap python3 python3-pytest git patch procps"

missing=
for package in $wanted; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup.sh: this is not a Debian system; sandboxes need bubblewrap, and" \
        "the base image is built with mmdebstrap or from a tar archive" >&2
elif [ "$(id -u)" != 0 ]; then
    echo "setup.sh: without these packages, tests of sandboxes are skipped; as root: apt-get install$missing" >&2
else
    echo "setup.sh: installing$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of packages
    apt-get -qq update </dev/null && apt-get -qq install -y --no-install-recommends $missing >/dev/null </dev/null
fi
