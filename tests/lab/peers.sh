#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Finds the reference programs that the differential tests compare with and prints shell assignments:
#   eval "$(tests/lab/peers.sh)"
# REFERENCE is qemu-storage-daemon 10 from Debian's backports, unpacked (not installed) below a cache folder; the
# machine's own apt configuration is not touched. Where that cannot be had, REFERENCE is the installed 7.2 and
# REFERENCE_MODULES stays empty.
set -u
cache=${GRANARY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/granary}
root=$cache/reference
daemon=$root/usr/bin/qemu-storage-daemon
modules=$root/usr/lib/$(uname -m)-linux-gnu/qemu

fetch() {
    apt=$cache/apt
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$root" || return 1
    mirror=$(apt-cache policy 2>/dev/null | sed -n 's!.* \(https\{0,1\}://[^ ]*/debian\) bookworm/main.*!\1!p' | head -n 1)
    cat > "$apt/sources.list" <<EOF
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} bookworm-backports main
EOF
    cat > "$apt/apt.conf" <<EOF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt";
Dir::State::Status "/var/lib/dpkg/status";
APT::Sandbox::User "$(id -un)";
Acquire::http::Timeout "20";
Acquire::Retries "1";
EOF
    (
        export APT_CONFIG="$apt/apt.conf"
        cd "$apt" && apt-get -q update && apt-get -q download qemu-utils qemu-block-extra || exit 1
        for package in ./*.deb; do
            dpkg-deb -x "$package" "$root" || exit 1
        done
    ) >&2
}

works() {
    [ -x "$daemon" ] && QEMU_MODULE_DIR=$modules "$daemon" --version >/dev/null 2>&1
}

if works || { [ "${1:-}" != --no-fetch ] && fetch && works; }; then
    echo "REFERENCE=$daemon"
    echo "REFERENCE_MODULES=$modules"
else
    echo "REFERENCE=$(command -v qemu-storage-daemon)"
    echo "REFERENCE_MODULES="
fi
