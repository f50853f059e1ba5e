#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that are missing for what the arguments name: build, run, demo-pr, check. Says what, asks nothing.
set -eu

build='meson ninja-build gcc pkg-config python3 liburing-dev libdeflate-dev libzstd-dev zlib1g-dev libgnutls28-dev nettle-dev libcmocka-dev systemtap-sdt-dev
       libargon2-dev libcap-ng-dev libseccomp-dev libfuse3-dev'
run='file libnbd-bin qemu-utils e2fsprogs socat'
check='fuse3 clang g++ pkg-config libclang-rt-14-dev llvm-14 python3-pytest python3-pytest-xdist python3-libnbd libnbd-bin fio qemu-utils qemu-system-common
       qemu-block-extra qemu-system-x86 e2fsprogs mount strace systemd cryptsetup-bin python3-cryptography'
# The rest of a guest is unpacked below the user's cache by tests/lib/debian.py.
demo_pr='qemu-system-x86 python3-pytest'

wanted=
for group in "$@"; do
    case $group in
    build) wanted="$wanted $build" ;;
    run) wanted="$wanted $run" ;;
    demo-pr) wanted="$wanted $demo_pr" ;;
    check) wanted="$wanted $check" ;;
    *) echo "deps.sh: no such group: $group" >&2; exit 2 ;;
    esac
done

missing=
for package in $wanted; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
    *' ok installed') ;;
    *) case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac ;;
    esac
done

if [ -n "$missing" ]; then
    echo "Installing:$missing"
    sudo=
    if [ "$(id -u)" != 0 ]; then
        sudo='sudo -n'
        if ! command -v sudo >/dev/null; then
            echo "Not root and no sudo here. Please install as root: apt-get install$missing" >&2
            exit 1
        fi
    fi
    install() {
        # shellcheck disable=SC2086 # a list of packages, and a command that may be empty
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
    }
    if ! install; then # the package lists may be old or missing
        $sudo apt-get update -q
        install
    fi
fi

case " $* " in
*' check '*)
    # The reference to compare with: unpacked below the user's cache, not installed.
    /usr/bin/python3 -B tests/lib/peers.py
    ;;
esac
