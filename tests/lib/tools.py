# SPDX-License-Identifier: Apache-2.0
"""Small helpers around programs, packages and deadlines."""

import ctypes
import os
import pathlib
import shutil
import subprocess

import pytest

from lib.program import DEADLINE, wait_until  # noqa: F401

TOP = pathlib.Path(__file__).resolve().parents[2]
# Which Debian package holds a program that a test calls.
PACKAGES = {
    'nbdinfo': 'libnbd-bin',
    'nbdcopy': 'libnbd-bin',
    'qemu-img': 'qemu-utils',
    'qemu-io': 'qemu-utils',
    'fio': 'fio',
    'mke2fs': 'e2fsprogs',
    'e2fsck': 'e2fsprogs',
    'meson': 'meson',
    'ninja': 'ninja-build',
    'socat': 'socat',
    'losetup': 'mount',
    'mount': 'mount',
    'qemu-system-x86_64': 'qemu-system-x86',
    'qemu-pr-helper': 'qemu-system-common',
    'unshare': 'util-linux',
    'setpriv': 'util-linux',
    'fusermount3': 'fuse3',
    'stdbuf': 'coreutils',
    'cc': 'gcc',
    'c++': 'g++',
    'nm': 'binutils',
    'readelf': 'binutils',
    'pkg-config': 'pkg-config',
    'strace': 'strace',
    'cryptsetup': 'cryptsetup-bin',
    'systemd-analyze': 'systemd',
}


def need(*programs):
    """Skips the test, naming the package, where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f'missing package {PACKAGES[program]} (program {program})')


def libnbd():
    """The libnbd module, or a skip that names its package."""
    try:
        import nbd
    except ImportError:
        pytest.skip('missing package python3-libnbd')
    return nbd


def need_io_uring():
    """A skip where the kernel, or the container, refuses io_uring."""
    io_uring_setup, parameters = 425, ctypes.create_string_buffer(120)
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(io_uring_setup, 1, parameters)
    if descriptor < 0:
        pytest.skip(f'io_uring is refused here: {os.strerror(ctypes.get_errno())}')
    os.close(descriptor)


def need_root(why):
    if os.geteuid() != 0:
        pytest.skip(f'needs root: {why}')


def run(*command, ok=(0,), timeout=DEADLINE * 5, **options):
    """Runs a program with captured output and checks its exit status against `ok`."""
    done = subprocess.run(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, **options
    )
    assert done.returncode in ok, (
        f'{command} ended with {done.returncode}\n{done.stdout.decode(errors="replace")}'
        f'\n{done.stderr.decode(errors="replace")}'
    )
    return done


def output(*command, **options):
    return run(*command, **options).stdout.decode()
