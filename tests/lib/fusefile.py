# SPDX-License-Identifier: Apache-2.0
"""Exports as files: what such a test needs, and what is mounted where without touching it."""

import contextlib
import ctypes
import errno
import os
import pathlib
import subprocess

import pytest

from lib.tools import need_root, run, wait_until

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE_RANGE, FALLOC_ZERO_RANGE = 1, 2, 8, 16
libc = ctypes.CDLL(None, use_errno=True)


def need_fuse():
    """Skips the test where nothing can be mounted through FUSE."""
    need_root('mounts files')
    try:
        os.close(os.open('/dev/fuse', os.O_RDWR))
    except OSError as error:
        pytest.skip(f'/dev/fuse cannot be used here: {error.strerror}')


def mounts():
    """(path, type) of every mount, in order."""
    for line in pathlib.Path('/proc/self/mountinfo').read_text().splitlines():
        left, right = line.split(' - ', 1)
        yield left.split()[4].encode().decode('unicode_escape'), right.split()[0]


def is_mounted(path):
    return any(point == str(path) and kind.startswith('fuse.') for point, kind in mounts())


@contextlib.contextmanager
def cleaned(*paths):
    """Whatever the test has left on the paths is unmounted at the end."""
    try:
        yield
    finally:
        for path in paths:
            while is_mounted(path):
                subprocess.run(['umount', '-l', path], check=True)


def export_option(mountpoint, node='n0', ident='e0', writable=True, **options):
    """The argument of --export."""
    text = f'type=fuse,id={ident},node-name={node},mountpoint={mountpoint},writable={"on" if writable else "off"}'
    return text + ''.join(f',{name.replace("_", "-")}={value}' for name, value in options.items())


def wait_unmounted(path):
    wait_until(lambda: not is_mounted(path), f'{path} is still mounted')


def fallocate(fd, mode, offset, length):
    result = libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def outcome(function, *args):
    """The result of the call, or the name of its error."""
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]


def check_image(image, form, contents):
    """The image is well and has exactly these bytes."""
    if form == 'qcow2':
        run('qemu-img', 'check', '-q', image)
    run('qemu-img', 'convert', '-f', form, '-O', 'raw', image, f'{image}.raw')
    assert pathlib.Path(f'{image}.raw').read_bytes() == contents
