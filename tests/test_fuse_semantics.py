# SPDX-License-Identifier: Apache-2.0
"""What system calls on an exported file do: the same as with the reference, except where that is wrong."""

import hashlib
import os
import stat

import pytest

from lib.differential import reference
from lib.fusefile import (
    FALLOC_COLLAPSE_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    cleaned,
    fallocate,
    need_fuse,
    outcome,
)
from lib.tools import need, run

KIB, MIB = 1 << 10, 1 << 20
SIZE = 1 * MIB
PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
# Kinds of exports: format of the image, options.
KINDS = {
    'raw': ('raw', {'writable': True}),
    'raw-readonly': ('raw', {'writable': False}),
    'raw-growable': ('raw', {'writable': True, 'growable': True}),
    'raw-odd': ('raw', {'writable': True}),
    'raw-private': ('raw', {'writable': True, 'allow_other': 'off'}),
    'qcow2': ('qcow2', {'writable': True}),
    'qcow2-growable': ('qcow2', {'writable': True, 'growable': True}),
}
GROWABLE = ('raw-growable', 'qcow2-growable')
FIXED = ('raw', 'raw-odd', 'raw-private', 'qcow2')


def opened(flags, function):
    """A case that works on a descriptor."""

    def case(path):
        fd = os.open(path, flags)
        try:
            return outcome(function, fd)
        finally:
            os.close(fd)

    return case


def rw(function):
    return opened(os.O_RDWR, function)


def describe(path):
    st = os.stat(path)
    return (
        st.st_ino,
        stat.filemode(st.st_mode),
        st.st_uid,
        st.st_gid,
        st.st_nlink,
        st.st_size,
        st.st_blocks > 0,
    )


def change(function):
    """A case that changes attributes and tells what they are then."""
    return lambda path: (outcome(function, path), describe(path))


def mode(bits):
    return change(lambda path: os.chmod(path, bits))


CASES = {
    'stat': describe,
    'read-end': opened(
        os.O_RDONLY, lambda fd: (len(os.pread(fd, 8 * KIB, SIZE - 4 * KIB)), os.pread(fd, 1, 2 * SIZE))
    ),
    'read-odd': opened(os.O_RDONLY, lambda fd: hashlib.sha1(os.pread(fd, 70001, 12345)).hexdigest()),
    'read-direct': opened(os.O_RDONLY | os.O_DIRECT, lambda fd: os.preadv(fd, [memory(8 * KIB)], 4 * KIB)),
    'write': rw(lambda fd: os.pwrite(fd, b'x' * 10000, 4321)),
    'write-over-end': rw(lambda fd: os.pwrite(fd, b'x' * 8192, SIZE - 4096)),
    'write-at-end': rw(lambda fd: os.pwrite(fd, b'x' * 4096, SIZE)),
    'write-behind-end': rw(lambda fd: os.pwrite(fd, b'x' * 4096, SIZE + 64 * KIB)),
    'write-direct-over-end': opened(
        os.O_RDWR | os.O_DIRECT, lambda fd: os.pwritev(fd, [memory(8 * KIB, b'y')], SIZE - 4 * KIB)
    ),
    'append': opened(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b'x' * 512)),
    'open-truncate': opened(os.O_RDWR | os.O_TRUNC, lambda fd: None),
    'shrink': rw(lambda fd: os.ftruncate(fd, SIZE // 2)),
    'shrink-path': change(lambda path: os.truncate(path, SIZE // 2)),
    'shrink-odd': rw(lambda fd: os.ftruncate(fd, 1000)),
    'shrink-to-nothing': rw(lambda fd: os.ftruncate(fd, 0)),
    'truncate-same': rw(lambda fd: os.ftruncate(fd, os.fstat(fd).st_size)),
    'enlarge': rw(lambda fd: os.ftruncate(fd, 2 * SIZE)),
    'fallocate-inside': rw(lambda fd: fallocate(fd, 0, 0, 64 * KIB)),
    'fallocate-over-end': rw(lambda fd: fallocate(fd, 0, SIZE - 4096, 8192)),
    'fallocate-at-end': rw(lambda fd: fallocate(fd, 0, os.fstat(fd).st_size, 64 * KIB)),
    'fallocate-behind-end': rw(lambda fd: fallocate(fd, 0, SIZE + 64 * KIB, 64 * KIB)),
    'fallocate-keep': rw(lambda fd: fallocate(fd, FALLOC_KEEP_SIZE, 0, 64 * KIB)),
    'punch': rw(lambda fd: fallocate(fd, PUNCH, 64 * KIB, 128 * KIB)),
    'punch-over-end': rw(lambda fd: fallocate(fd, PUNCH, SIZE - 64 * KIB, 128 * KIB)),
    'punch-odd': rw(lambda fd: fallocate(fd, PUNCH, 1234, 200000)),
    'zero': rw(lambda fd: fallocate(fd, FALLOC_ZERO_RANGE, 4096, 300000)),
    'zero-keep-over-end': rw(
        lambda fd: fallocate(fd, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, SIZE - 4096, 64 * KIB)
    ),
    'zero-keep-behind-end': rw(
        lambda fd: fallocate(fd, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, SIZE + 64 * KIB, 64 * KIB)
    ),
    'zero-over-end': rw(lambda fd: fallocate(fd, FALLOC_ZERO_RANGE, SIZE - 4096, 64 * KIB)),
    'collapse': rw(lambda fd: fallocate(fd, FALLOC_COLLAPSE_RANGE, 0, 64 * KIB)),
    'seek': opened(
        os.O_RDONLY,
        lambda fd: [
            outcome(os.lseek, fd, offset, whence)
            for whence in (os.SEEK_DATA, os.SEEK_HOLE)
            for offset in (0, 300 * KIB, 600 * KIB, SIZE - 1, SIZE, SIZE + 4096)
        ],
    ),
    'copy': rw(lambda fd: os.copy_file_range(fd, fd, 200 * KIB, 500 * KIB, 1 * KIB)),
    'sync': rw(lambda fd: (os.fsync(fd), os.fdatasync(fd))),
    'chmod-owner': mode(0o400),
    'chmod-write': mode(0o600),
    'chmod-others': mode(0o644),
    'chmod-all': mode(0o666),
    'chown': change(lambda path: os.chown(path, 12, 34)),
    'times': change(lambda path: os.utime(path, (1, 2))),
    'setxattr': change(lambda path: os.setxattr(path, 'user.x', b'1')),
    'listxattr': lambda path: os.listxattr(path),
    'getxattr': lambda path: os.getxattr(path, 'user.x'),
    'access': lambda path: [os.access(path, how) for how in (os.R_OK, os.W_OK, os.X_OK)],
    'unlink': lambda path: os.unlink(path),
    'rename': lambda path: os.rename(path, f'{path}-2'),
    'lookup': lambda path: os.stat(f'{path}/x'),
}


def memory(size, fill=b'\0'):
    """A buffer that starts at a page."""
    import mmap

    buffer = mmap.mmap(-1, size)
    buffer.write(fill * size)
    return buffer


def growth(kind, case):
    return kind in FIXED and case in (
        'enlarge',
        'fallocate-at-end',
        'fallocate-behind-end',
        'fallocate-over-end',
        'zero-over-end',
    )


def is_wanted(kind, case, ours, theirs):
    """Whether a difference is one of those that the manual lists."""
    if growth(kind, case):  # nothing but growable=on enlarges an image
        return ours[0] == ('EPERM' if case == 'enlarge' else 'ENOSPC') and ours[1] == initial_size(kind)
    if case == 'zero-keep-behind-end':  # nothing is there to be zeroed, which is no error
        return (ours[0], theirs[0]) == (None, 'EIO')
    if case == 'write-direct-over-end' and kind in FIXED:  # short, as other writes are
        return ours[0] == initial_size(kind) - (SIZE - 4096) and theirs[0] == 'EIO'
    if case == 'punch-odd':  # what cannot be unmapped at its ends is zeroed
        return (ours[0], theirs[0]) == (None, 'ENOTSUP')
    return False


def initial_size(kind):
    return SIZE + 512 if kind == 'raw-odd' else SIZE


def make_image(path, kind):
    data = b''.join(i.to_bytes(8, 'little') * 64 for i in range(SIZE // 512))
    length = SIZE + 100 if kind == 'raw-odd' else SIZE
    with open(path, 'wb') as file:
        file.truncate(length)
        for start, end in ((0, 256 * KIB), (512 * KIB, 768 * KIB)):
            file.seek(start)
            file.write(data[start:end])
    if KINDS[kind][0] == 'qcow2':
        run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', path, f'{path}.q')
        os.replace(f'{path}.q', path)


def attempt(daemon, tmp, kind, case):
    """(what the case told, size and contents of the file afterwards)"""
    image, mountpoint = tmp / 'image', tmp / 'mountpoint'
    make_image(image, kind)
    mountpoint.touch()
    form, options = KINDS[kind]
    read_only = not options['writable']
    daemon.blockdev_add(
        driver=form, node_name='n', read_only=read_only, file={'driver': 'file', 'filename': str(image)}
    )
    daemon.export('n', 'e', 'fuse', mountpoint=str(mountpoint), **options)
    with cleaned(mountpoint):
        result = outcome(CASES[case], mountpoint)
        contents = mountpoint.read_bytes()
        size = os.stat(mountpoint).st_size
        daemon.unexport('e')
    daemon.cmd('blockdev-del', node_name='n')
    return result, size, hashlib.sha1(contents).hexdigest()


@pytest.mark.parametrize('kind', KINDS)
def test_system_calls_do_what_they_do_with_the_reference(kind, daemon, tmp):
    need_fuse()
    need('qemu-img')
    ours, theirs = daemon(), daemon(**reference().options())
    different = {}
    for case in CASES:
        mine = attempt(ours, tmp, kind, case)
        other = attempt(theirs, tmp, kind, case)
        if mine != other and not is_wanted(kind, case, mine, other):
            different[case] = (mine, other)
    assert not different


@pytest.mark.better
@pytest.mark.sanitize
@pytest.mark.parametrize('kind', KINDS)
def test_only_growable_exports_grow(kind, daemon, tmp):
    """Without a reference to compare with: whatever ends behind the end."""
    need_fuse()
    need('qemu-img')
    ours = daemon()
    for case in (name for name in CASES if 'end' in name or name == 'enlarge'):
        told, size, _ = attempt(ours, tmp, kind, case)
        if kind not in GROWABLE:
            assert size == initial_size(kind), case
        if growth(kind, case):
            assert told == ('EPERM' if case == 'enlarge' else 'ENOSPC'), case
