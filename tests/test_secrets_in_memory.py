# SPDX-License-Identifier: Apache-2.0
"""Passwords and volume keys are in the daemon's memory while they are needed, and not after that."""

import pytest

from lib.encrypted import SECRET, SIZE, amend, connect, make_with_reference, open_image
from lib.luks import volume_key
from lib.tools import need
from lib.workload import read_all, scatter

PASSWORD = 'correct horse battery staple'


def memory_has(served, pieces):
    """Which of the pieces the daemon's memory holds anywhere."""
    pid = served.process.pid
    found = set()
    with open(f'/proc/{pid}/maps') as maps, open(f'/proc/{pid}/mem', 'rb', 0) as memory:
        for line in maps:
            area, rights, *_ = line.split()
            if not rights.startswith('rw'):
                continue
            start, end = (int(number, 16) for number in area.split('-'))
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, ValueError, OverflowError):  # of a device, or the kernel's
                continue
            found |= {name for name, piece in pieces.items() if piece in data}
    return found


def key_of(path, tmp):
    """The volume key of a qcow2 image, whose header is a LUKS volume without data."""
    data = path.read_bytes()
    at = data.index(bytes.fromhex('0537be77')) + 8
    offset, length = (int.from_bytes(data[i : i + 8], 'big') for i in (at, at + 8))
    (tmp / 'header.luks').write_bytes(data[offset : offset + length].ljust(length + 1024, b'\0'))
    return volume_key(tmp / 'header.luks', tmp, 'x')


@pytest.mark.better
def test_nothing_is_left(daemon, tmp, rng):
    need('qemu-img', 'cryptsetup')
    (tmp / 'password').write_text(PASSWORD)
    make_with_reference(tmp / 'e.qcow2', {})
    key = key_of(tmp / 'e.qcow2', tmp)
    assert len(key) == 64
    other = ('--object', f'secret,id=t,file={tmp}/password')
    served = daemon(*SECRET, *other, '--object', 'iothread,id=io', nbd=True)
    pieces = {'password': PASSWORD.encode(), 'data key': key[:32], 'tweak key': key[32:]}
    open_image(served, tmp / 'e.qcow2')
    assert 'password' in memory_has(served, pieces)  # it is looked for in the right places
    amend(served, state='active', new_secret='t', iter_time=10)
    served.cmd('blockdev-del', node_name='q')
    open_image(served, tmp / 'e.qcow2', secret='t')
    handle = connect(served, writable=True, iothread='io')
    shadow = bytearray(SIZE)
    scatter(handle, rng, shadow)
    assert read_all(handle) == shadow
    assert 'data key' in memory_has(served, pieces)
    handle.shutdown()
    served.unexport('exp-q', mode='hard')
    served.cmd('blockdev-del', node_name='q')
    assert memory_has(served, pieces) == {'password'}
    served.cmd('object-del', id='t')
    assert not memory_has(served, pieces)
