# SPDX-License-Identifier: Apache-2.0
"""What requests do to the file below: discard modes, detect-zeroes, holes, FUA, read-only, sizes that are not aligned."""

import os

import pytest

from lib import images, nbdwire
from lib.tools import libnbd, need, run

pytestmark = pytest.mark.sanitize
MIB = 1 << 20


def allocated(path):
    return os.stat(path).st_blocks * 512


@pytest.mark.parametrize('discard', ['unmap', 'ignore'])
def test_discard_modes(discard, daemon, tmp):
    (tmp / 'f').write_bytes(b'x' * (4 * MIB))
    served = daemon(
        '--blockdev',
        f'file,node-name=f,filename={tmp}/f,discard={discard}',
        '--export',
        'nbd,id=e,node-name=f,writable=on',
        nbd=True,
    )
    handle = served.connect('f')
    handle.trim(2 * MIB, MIB)
    handle.flush()
    data = handle.pread(2 * MIB, MIB)
    if discard == 'unmap':
        assert data == bytes(2 * MIB) and allocated(tmp / 'f') <= 3 * MIB
    else:
        assert data == b'x' * (2 * MIB) and allocated(tmp / 'f') >= 4 * MIB
    assert handle.pread(MIB, 0) == b'x' * MIB and handle.pread(MIB, 3 * MIB) == b'x' * MIB


@pytest.mark.parametrize('mode', ['off', 'on', 'unmap'])
def test_detect_zeroes(mode, daemon, tmp):
    need('qemu-img')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / 'q', 4 * MIB)
    served = daemon(
        '--blockdev',
        f'qcow2,node-name=q,discard=unmap,detect-zeroes={mode},file.driver=file,file.filename={tmp}/q',
        '--export',
        'nbd,id=e,node-name=q,writable=on',
        nbd=True,
    )
    handle = served.connect('q')
    handle.pwrite(bytes(2 * MIB), 0)
    handle.flush()
    served.stop()
    grown = os.stat(tmp / 'q').st_size
    assert (grown > 2 * MIB) == (mode == 'off'), grown
    images.check(tmp / 'q')


def test_write_zeroes_makes_holes_unless_told_not_to(daemon, tmp):
    nbd = libnbd()
    (tmp / 'f').write_bytes(b'x' * (4 * MIB))
    served = daemon(
        '--blockdev',
        f'file,node-name=f,filename={tmp}/f,discard=unmap',
        '--export',
        'nbd,id=e,node-name=f,writable=on',
        nbd=True,
    )
    handle = served.connect('f')
    handle.zero(MIB, 0)
    handle.flush()
    assert allocated(tmp / 'f') <= 3 * MIB
    handle.zero(MIB, MIB, flags=nbd.CMD_FLAG_NO_HOLE)
    handle.flush()
    assert allocated(tmp / 'f') >= 2 * MIB
    assert handle.pread(3 * MIB, 0) == bytes(2 * MIB) + b'x' * MIB


def test_sizes_that_are_no_multiple_of_anything(daemon, tmp, rng):
    content = rng.randbytes(1000003)
    (tmp / 'f').write_bytes(content)
    served = daemon(
        '--blockdev',
        f'file,node-name=f,filename={tmp}/f',
        '--blockdev',
        f'file,node-name=d,filename={tmp}/f,cache.direct=on,read-only=on,locking=off',
        '--export',
        'nbd,id=e,node-name=f,writable=on',
        '--export',
        'nbd,id=d,node-name=d',
        nbd=True,
    )
    with nbdwire.connect(served.nbd_path, 'f', structured=False) as wire:
        size = wire.size
        assert size in (1000003, 1000448)  # the file's size, perhaps up to a sector
        assert wire.request(nbdwire.CMD_READ, 999999, 4)[1] == ('data', content[999999:])
        assert wire.error_of(wire.request(nbdwire.CMD_WRITE, 999990, 13, payload=b'end of story.')) == 0
        assert wire.request(nbdwire.CMD_READ, 999990, 13)[1] == ('data', b'end of story.')
    assert (tmp / 'f').read_bytes()[999990:1000003] == b'end of story.'


def test_read_only_export_of_a_writable_node(daemon):
    nbd = libnbd()
    served = daemon('--blockdev', 'null-co,node-name=n', '--export', 'nbd,id=e,node-name=n', nbd=True)
    handle = served.connect('n')
    assert handle.is_read_only()
    with nbdwire.connect(served.nbd_path, 'n') as wire:
        assert wire.error_of(wire.request(nbdwire.CMD_WRITE, 0, 4, payload=b'abcd')) == 22
    with pytest.raises(nbd.Error):
        handle.pwrite(b'x', 0)


def test_overlapping_unaligned_writes_under_direct_io(daemon, tmp, rng):
    """Writers of neighbouring pieces of one block never undo each other."""
    nbd = libnbd()
    (tmp / 'f').write_bytes(bytes(65536))
    served = daemon(
        '--blockdev',
        f'file,node-name=f,filename={tmp}/f,cache.direct=on',
        '--blockdev',
        'raw,node-name=r,file=f',
        '--export',
        'nbd,id=e,node-name=r,writable=on',
        nbd=True,
    )
    handles = [served.connect('r') for _ in range(4)]
    for handle in handles:
        handle.set_strict_mode(
            0
        )  # the server advertises its block size; requests below it have to work all the same
    expected = bytearray(65536)
    for _ in range(60):
        flying = []
        base = 4096 * rng.randrange(16)
        for i in range(32):
            data = rng.randbytes(128)
            expected[base + i * 128 : base + (i + 1) * 128] = data
            handle = handles[i % 4]
            flying.append(
                (handle, handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), base + i * 128))
            )
        for handle, cookie in flying:
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
    assert handles[0].pread(65536, 0) == bytes(expected)


def test_backing_file_is_never_written(daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    image = images.Image('top', backing='qcow2')
    path = images.make(image, tmp, rng)
    base = tmp / 'top.base.qcow2'
    before = base.read_bytes()
    served = daemon(
        '--blockdev',
        f'qcow2,node-name=q,discard=unmap,file.driver=file,file.filename={path}',
        '--export',
        'nbd,id=e,node-name=q,writable=on',
        nbd=True,
    )
    handle = served.connect('q')
    for offset in range(0, 2 * MIB, 50000):
        handle.pwrite(b'y' * 1000, min(offset, 2 * MIB - 1000))
    handle.flush()
    served.stop()
    assert base.read_bytes() == before


def test_extended_headers_allow_huge_requests(daemon):
    served = daemon(
        '--blockdev',
        f'null-co,node-name=n,size={1 << 40},read-zeroes=on',
        '--export',
        'nbd,id=e,node-name=n,writable=on',
        nbd=True,
    )
    with nbdwire.Wire(served.nbd_path) as wire:
        wire.greeting()
        if wire.option(nbdwire.OPT_EXTENDED)[-1][0] != nbdwire.REP_ACK:
            pytest.skip('missing package qemu-utils from bookworm-backports (extended headers)')
        wire.extended = True
        wire.set_meta('n', 'base:allocation')
        wire.go('n')
        assert wire.error_of(wire.request(nbdwire.CMD_ZEROES, 0, 1 << 39)) == 0
        assert wire.error_of(wire.request(nbdwire.CMD_TRIM, 5, (1 << 40) - 5)) == 0
        pieces = wire.request(nbdwire.CMD_STATUS, 0, 1 << 40)
        assert pieces[0][2] == nbdwire.CHUNK_STATUS_EXT
