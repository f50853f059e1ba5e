# SPDX-License-Identifier: Apache-2.0
"""Passwords and volume keys are in the daemon's memory while they are needed, and not after that."""

import base64
import json

import pytest

from lib.daemon import monitor_at
from lib.encrypted import SECRET, SIZE, amend, connect, make_with_reference, open_image
from lib.luks import volume_key
from lib.qmp import Qmp
from lib.tools import need
from lib.workload import read_all, scatter

PASSWORD = 'correct horse battery staple'


def areas(pid):
    """Of memory that the program can write to: (start, end, whether it is neither swapped nor dumped)."""
    with open(f'/proc/{pid}/smaps') as maps:
        for line in maps:
            first, *rest = line.split()
            if first == 'VmFlags:' and 'wr' in rest:
                yield start, end, {'lo', 'dd'} <= set(rest)
            elif not first.endswith(':'):
                start, end = (int(number, 16) for number in first.split('-'))


def memory_has(served, pieces, protected=True):
    """Which of the pieces the daemon's memory holds anywhere, or anywhere but in the pages for secrets."""
    pid = served.process.pid
    found = set()
    with open(f'/proc/{pid}/mem', 'rb', 0) as memory:
        for start, end, secret in areas(pid):
            if secret and not protected:
                continue
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


def parts(name, text):
    """Some of a text: freed memory has lost its first bytes, and a copy may be cut."""
    return {f'{name} {at}': text[at : at + 12] for at in range(0, len(text) - 11, max(12, len(text) // 40))}


def add(ident, text, **more):
    return {'execute': 'object-add', 'arguments': {'qom-type': 'secret', 'id': ident, 'data': text, **more}}


def encode(command):
    return json.dumps(command).encode() + b'\n'


def refused(served, line):
    """Sends it and reads the one or more errors that it is answered with."""
    served.qmp.send_raw(line + encode({'execute': 'query-version', 'id': 'end'}))
    answers = []
    while not answers or answers[-1].get('id') != 'end':
        answers.append(served.qmp.read_message())
    assert all('error' in answer for answer in answers[:-1]) and len(answers) > 1, answers


@pytest.mark.better
@pytest.mark.parametrize('length', [72, 100_000])
def test_commands_leave_nothing(length, daemon, tmp, rng):
    """A secret in a command is in the pages for secrets while its object lives, and nowhere after that."""
    path = tmp / 'other.sock'
    served = daemon(*monitor_at(path))
    text = rng.randbytes(length // 2).hex()
    coded = base64.b64encode(rng.randbytes(length)).decode()
    pieces = parts('text', text.encode())

    served.qmp.send_raw(encode(add('raw', text)))
    assert served.qmp.read_message() == {'return': {}}
    assert memory_has(served, pieces) == set(pieces)  # it is looked for in the right places
    assert not memory_has(served, pieces, protected=False)
    for byte in encode(add('slow', text[:72])):
        served.qmp.send_raw(bytes([byte]))
    assert served.qmp.read_message() == {'return': {}}
    escaped = json.dumps(add('escaped', '@')).replace('@', ''.join(f'\\u{ord(c):04x}' for c in text))
    served.qmp.send_raw(escaped.encode())
    assert served.qmp.read_message() == {'return': {}}
    served.qmp.send_raw(encode(add('base64', coded, format='base64')))
    assert served.qmp.read_message() == {'return': {}}
    pieces |= parts('base64', coded.encode()) | parts('decoded', base64.b64decode(coded))
    assert not memory_has(served, pieces, protected=False)

    command = add('no', text)
    for line in (
        encode(add('raw', text)),
        encode(add('no', text, file='x')),
        encode(add('no', text + '!', format='base64')),
        encode(add('no', text, nope=1)),
        encode({**command, 'execute': 'nope'}),
        encode({**command, 'arguments': [text]}),
        encode({**command, 'arguments': {**command['arguments'], 'id': {'x': text}}}),
        encode({'execute': 'qom-set', 'arguments': {'path': 'raw', 'property': 'data', 'value': text}}),
        encode(command).replace(b'}}', b',}}'),
        encode(command).replace(b'"data"', b'"id"'),
        encode(command).replace(b'"}}', b'\\q"}}'),
    ):
        refused(served, line)
    assert not memory_has(served, pieces, protected=False)
    client = Qmp.connect(path)
    client.send_raw(encode(command)[:-20])
    client.close()
    again = Qmp.connect(path)  # the one before has ended
    assert not memory_has(served, pieces, protected=False)
    again.close()

    for ident in 'raw', 'slow', 'escaped', 'base64':
        served.cmd('object-del', id=ident)
    assert not memory_has(served, pieces)
