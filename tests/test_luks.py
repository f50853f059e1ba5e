# SPDX-License-Identifier: Apache-2.0
"""LUKS volumes: made by one program, read and written by the others."""

import json
import pathlib
import shutil
import struct
import subprocess

import pytest

from lib import images
from lib.luks import (
    COMBINATIONS,
    MIB,
    OTHER,
    PASSWORD,
    SECRET,
    SIZE,
    amend,
    cipher_options,
    close,
    connect,
    cryptsetup,
    cryptsetup_opens,
    make,
    open_volume,
)
from lib.qmp import QmpError
from lib.tools import libnbd, need, output, run
from lib.workload import use


def image_opts(path, secret='s', **more):
    named = {'driver': 'luks', 'key-secret': secret, 'file': {'driver': 'file', 'filename': str(path)}, **more}
    return 'json:' + json.dumps(named)


def make_with_reference(path, combination=COMBINATIONS[0], size=SIZE):
    text = ','.join(f'{name}={value}' for name, value in cipher_options(combination).items())
    images.create_encrypted('-f', 'luks', *SECRET, '-o', f'key-secret=s,iter-time=20,{text}', path, size)


def read_with_reference(path, tmp, **more):
    run('qemu-img', 'convert', *SECRET, '-O', 'raw', image_opts(path, **more), tmp / 'plain.raw')
    return (tmp / 'plain.raw').read_bytes()


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """By the reference, which measures the processor for seconds before it makes one."""
    need('qemu-img')
    path = tmp_path_factory.mktemp('original') / 'a.luks'
    make_with_reference(path)
    return path


@pytest.fixture
def path(original, tmp):
    """A copy of it for one test."""
    return pathlib.Path(shutil.copy(original, tmp))


@pytest.mark.parametrize('combination', COMBINATIONS, ids=str)
def test_interchange(combination, daemon, tmp, rng):
    """Both programs read what the other made and wrote."""
    libnbd()
    need('qemu-img')
    served = daemon(*SECRET, nbd=True)
    ours, theirs = tmp / 'ours.luks', tmp / 'theirs.luks'
    make(served, ours, combination)
    make_with_reference(theirs, combination)
    for path in (ours, theirs):
        open_volume(served, path)
        handle = connect(served)
        assert handle.get_size() == SIZE
        shadow = use(handle, rng)
        close(served)
        assert read_with_reference(path, tmp) == shadow


def test_a_key_that_fills_no_whole_sectors(daemon, tmp, rng):
    """What stops the reference at an assertion, cryptsetup can do."""
    need('cryptsetup')
    served = daemon(*SECRET, nbd=True)
    make(served, tmp / 'a.luks', ('aes-192', 'cbc', 'plain64', None, 'sha256'))
    cryptsetup_opens(tmp / 'a.luks')
    open_volume(served, tmp / 'a.luks')
    use(connect(served), rng)


@pytest.mark.parametrize(
    'cipher,bits,hashed',
    [
        ('aes-xts-plain64', 512, 'sha256'),
        ('aes-xts-plain64', 256, 'sha512'),
        ('aes-cbc-essiv:sha256', 256, 'sha1'),
        ('aes-cbc-plain64', 192, 'ripemd160'),
    ],
)
def test_cryptsetup(cipher, bits, hashed, daemon, tmp, rng):
    need('cryptsetup')
    path = tmp / 'c.luks'
    with open(path, 'wb') as file:
        file.truncate(4 * MIB + SIZE)
    options = ('--type', 'luks1', '--iter-time', 10, '--use-urandom')
    cryptsetup('luksFormat', *options, '--cipher', cipher, '--key-size', bits, '--hash', hashed, path)
    served = daemon(*SECRET, nbd=True)
    open_volume(served, path)
    shadow = use(connect(served), rng)
    served.stop()
    cryptsetup_opens(path)
    if bits != 192:
        need('qemu-img')
        assert read_with_reference(path, tmp) == shadow


def test_our_volume_opens_in_cryptsetup(daemon, tmp):
    need('cryptsetup')
    served = daemon(*SECRET)
    make(served, tmp / 'a.luks')
    cryptsetup_opens(tmp / 'a.luks')
    cryptsetup_opens(tmp / 'a.luks', 'wrong', 2)
    dump = output('cryptsetup', 'luksDump', tmp / 'a.luks')
    assert 'xts-plain64' in dump and 'Key Slot 0: ENABLED' in dump and 'Key Slot 1: DISABLED' in dump


def test_detached_header(daemon, tmp, rng):
    served = daemon(*SECRET, nbd=True)
    header, data = tmp / 'h.luks', tmp / 'd.img'
    header.touch()
    served.blockdev_add(driver='file', node_name='h', filename=str(header))
    make(served, data, header='h')
    assert data.stat().st_size == SIZE
    open_volume(served, data, header='h')
    shadow = use(connect(served), rng)
    served.stop()
    need('cryptsetup')
    cryptsetup_opens(header)
    assert data.read_bytes() != bytes(shadow)


@pytest.mark.parametrize('slot', [1, 7])
def test_every_slot_is_tried(slot, daemon, path, tmp):
    need('cryptsetup')
    (tmp / 'old').write_text(PASSWORD)
    (tmp / 'new').write_text('other')
    command = ['cryptsetup', 'luksAddKey', '-q', '--iter-time', '10', '--key-slot', str(slot)]
    run(*command, '--key-file', tmp / 'old', path, tmp / 'new')
    run('cryptsetup', 'luksKillSlot', '-q', path, '0')
    served = daemon(*SECRET, *OTHER)
    open_volume(served, path, secret='t')
    with pytest.raises(QmpError, match='Invalid password, cannot unlock any keyslot'):
        open_volume(served, path, name='m')
    info = served.node('l')['image']['format-specific']['data']
    assert [s['active'] for s in info['slots']] == [i == slot for i in range(8)]


def test_resize(daemon, path, tmp, rng):
    """The file grows with the volume; what was there stays."""
    served = daemon(*SECRET, nbd=True)
    open_volume(served, path)
    handle = connect(served)
    data = rng.randbytes(SIZE)
    handle.pwrite(data, 0)
    handle.shutdown()
    served.unexport('exp-l', mode='hard')
    before = path.stat().st_size
    served.cmd('block_resize', node_name='l', size=SIZE + MIB)
    assert path.stat().st_size == before + MIB
    served.cmd('blockdev-del', node_name='l')
    assert read_with_reference(path, tmp)[:SIZE] == data


@pytest.mark.better  # the reference follows only when the node is reopened
def test_size_follows_the_file(daemon, tmp, rng):
    """Which is resized as a node of its own, or by another program: when the volume gets a user and when it is reopened."""
    libnbd()
    served = daemon(*SECRET, nbd=True)
    path = tmp / 'a.luks'
    make(served, path)
    head = path.stat().st_size - SIZE
    file = {'driver': 'file', 'node-name': 'f', 'filename': str(path)}
    node = {'driver': 'luks', 'node-name': 'l', 'file': 'f', 'key-secret': 's'}
    served.qmp.cmd_args('blockdev-add', file)
    served.qmp.cmd_args('blockdev-add', node)

    def size():
        return served.node('l')['image']['virtual-size']

    def write(expected):
        handle = connect(served)
        assert handle.get_size() == size() == expected
        data = rng.randbytes(4096)
        handle.pwrite(data, expected - 4096)
        assert handle.pread(4096, expected - 4096) == data
        handle.shutdown()
        served.unexport('exp-l', mode='hard')

    served.cmd('block_resize', node_name='f', size=head + 2 * SIZE)
    write(2 * SIZE)
    served.cmd('block_resize', node_name='f', size=head + SIZE - 512)
    write(SIZE - 512)
    served.cmd('block_resize', node_name='f', size=head - 512)
    served.cmd('blockdev-reopen', options=[node])
    assert size() == 0
    with open(path, 'r+b') as other:
        other.truncate(head + 3 * SIZE)
    served.cmd('blockdev-reopen', options=[node])
    assert size() == 0
    served.cmd('blockdev-reopen', options=[file, node])
    write(3 * SIZE)


def active(served):
    return [i for i, slot in enumerate(served.node('l')['image']['format-specific']['data']['slots']) if slot['active']]


def test_keys_are_added_and_erased(daemon, path, tmp, rng):
    """While the volume is in use; what is on disk opens in cryptsetup or no more."""
    need('cryptsetup')
    served = daemon(*SECRET, *OTHER, nbd=True)
    open_volume(served, path)
    amend(served, state='active', new_secret='t', iter_time=20)
    amend(served, state='active', new_secret='t', iter_time=20, keyslot=6)
    assert active(served) == [0, 1, 6]
    cryptsetup_opens(path, 'other')
    handle = connect(served)
    data = rng.randbytes(4096)
    handle.pwrite(data, 0)
    handle.shutdown()
    served.unexport('exp-l', mode='hard')
    for message, options in {
        "'new-secret' is required to activate a keyslot": {'state': 'active'},
        'Invalid keyslot 8 specified, must be between 0 and 7': {'state': 'inactive', 'keyslot': 8},
        'Refusing to overwrite active keyslot 6': {'state': 'active', 'new-secret': 't', 'keyslot': 6},
        'Given keyslot 5 is already erased': {'state': 'inactive', 'keyslot': 5},
        "Given keyslot 6 doesn't contain the given old password": {
            'state': 'inactive',
            'keyslot': 6,
            'old-secret': 's',
        },
        "'secret' must not be given when erasing keyslots": {'state': 'inactive', 'secret': 's'},
        'either explicit keyslot index or the password': {'state': 'inactive'},
    }.items():
        with pytest.raises(QmpError, match=message):
            amend(served, **options)
    before = path.read_bytes()
    amend(served, state='inactive', old_secret='t')
    assert active(served) == [0]
    cryptsetup_opens(path, 'other', 2)
    after = path.read_bytes()
    for slot in (1, 6):  # the material is gone, too
        assert before[4096 + slot * 258048 :][:256000] != after[4096 + slot * 258048 :][:256000]
    with pytest.raises(QmpError, match='Attempt to erase the only active keyslot 0'):
        amend(served, state='inactive', keyslot=0)
    with pytest.raises(QmpError, match='All the active keyslots match'):
        amend(served, state='inactive', old_secret='s')
    served.cmd('blockdev-del', node_name='l')
    assert read_with_reference(path, tmp)[:4096] == data


@pytest.mark.better  # the reference writes to the file, or ends with a failed assertion
@pytest.mark.parametrize('detached', [False, True])
def test_keys_of_volumes_that_cannot_be_written(detached, daemon, tmp):
    """Also where the file could be written to, until the node is reopened."""
    need('cryptsetup')
    served = daemon(*SECRET, *OTHER)
    children = {'file': 'f'}
    for name in ('f', 'h') if detached else ('f',):
        (tmp / name).touch()
        served.blockdev_add(driver='file', node_name=name, filename=str(tmp / name))
    if detached:
        children['header'] = 'h'
    path = tmp / ('h' if detached else 'f')
    options = {'driver': 'luks', 'size': MIB, 'key-secret': 's', 'iter-time': 20, **children}
    served.qmp.run_job('create', 'blockdev-create', options=options)
    node = {'driver': 'luks', 'node-name': 'l', 'key-secret': 's', **children}
    served.qmp.cmd_args('blockdev-add', {**node, 'read-only': True})
    before = path.read_bytes()
    for change in ({'state': 'active', 'new-secret': 't', 'iter-time': 20}, {'state': 'inactive', 'keyslot': 0}):
        with pytest.raises(QmpError, match="Node 'l' is read-only: its keys cannot be changed"):
            amend(served, force=True, **change)
    assert path.read_bytes() == before
    assert active(served) == [0]
    served.cmd('blockdev-reopen', options=[node])
    amend(served, state='active', new_secret='t', iter_time=20)
    served.cmd('blockdev-reopen', options=[{**node, 'read-only': True}])
    before = path.read_bytes()
    with pytest.raises(QmpError, match="Node 'l' is read-only: its keys cannot be changed"):
        amend(served, state='inactive', keyslot=0)
    assert path.read_bytes() == before
    for password in (PASSWORD, 'other'):
        cryptsetup_opens(path, password)


def test_secrets_are_not_shown(daemon, tmp):
    """Neither queries nor errors have the password or the volume key."""
    secret = 'kLmNoPqRsT'
    served = daemon('--object', f'secret,id=s,data={secret}')
    make(served, tmp / 'a.luks')
    open_volume(served, tmp / 'a.luks')
    said = [served.cmd('query-named-block-nodes'), served.cmd('query-block'), served.cmd('query-jobs')]
    for item in served.cmd('qom-list', path='/objects/s'):
        try:
            said.append(served.cmd('qom-get', path='/objects/s', property=item['name']))
        except QmpError as error:
            said.append(str(error))
    with pytest.raises(QmpError) as refused:
        open_volume(served, tmp / 'a.luks', name='m', secret=secret + '-not')
    said.append(str(refused.value).replace(secret + '-not', ''))
    assert secret not in json.dumps(said, default=str)


def be32(value):
    return struct.pack('>I', value)


SLOT, SLOT_BYTES = 208, 48
DAMAGES = {
    'magic': (0, b'X'),
    'version': (6, b'\0\3'),
    'cipher-without-end': (8, b'a' * 32),
    'cipher': (8, b'foo\0'),
    'mode-without-end': (40, b'a' * 32),
    'mode-without-dash': (40, b'xts\0'),
    'mode': (40, b'foo-plain64\0'),
    'ivgen': (40, b'xts-foo\0'),
    'essiv-without-hash': (40, b'xts-essiv\0'),
    'essiv-hash': (40, b'xts-essiv:foo\0'),
    'essiv-sha1': (40, b'xts-essiv:sha1\0'),
    'ecb': (40, b'ecb-plain64\0' + bytes(10)),
    'hash-without-end': (72, b'a' * 32),
    'hash': (72, b'foo\0'),
    'payload-1': (104, be32(1)),
    'payload-0': (104, be32(0)),
    'payload-over-slot': (104, be32(4000)),
    'key-bytes-0': (108, be32(0)),
    'key-bytes-16': (108, be32(16)),
    'key-bytes-63': (108, be32(63)),
    'key-bytes-huge': (108, be32(0xFFFFFFFF)),
    'digest': (112, b'xxxx'),
    'digest-iterations': (164, be32(0)),
    'slot-off': (SLOT, be32(0xDEAD)),
    'slot-state': (SLOT, be32(7)),
    'slot-iterations-0': (SLOT + 4, be32(0)),
    'slot-iterations-1': (SLOT + 4, be32(1)),
    'slot-place-0': (SLOT + 40, be32(0)),
    'slot-place-1': (SLOT + 40, be32(1)),
    'slot-place-over-payload': (SLOT + 40, be32(4040)),
    'stripes-0': (SLOT + 44, be32(0)),
    'stripes-huge': (SLOT + 44, be32(0xFFFFFFFF)),
    'slots-overlap': (SLOT + SLOT_BYTES + 40, be32(9)),
    'slot-1-iterations': (SLOT + SLOT_BYTES, be32(0xAC71F3)),
}


@pytest.mark.sanitize
def test_damaged_headers(daemon, path, tmp):
    """Refused with the words of the reference."""
    good = path.read_bytes()
    served = daemon(*SECRET)
    damaged = [(name, good[:at] + data + good[at + len(data) :]) for name, (at, data) in DAMAGES.items()]
    damaged += [(f'cut-{at}', good[:at]) for at in (0, 5, 208, 591, 592, 4096, 260000)]
    for name, content in damaged:
        path = tmp / f'{name}.luks'
        path.write_bytes(content)
        theirs = subprocess.run(
            ['qemu-io', *SECRET, '-c', 'length', image_opts(path)], capture_output=True, text=True
        ).stderr.strip()
        with pytest.raises(QmpError) as refused:
            open_volume(served, path)
        assert theirs.endswith(f': {refused.value.desc}'), (name, theirs, refused.value.desc)


def test_too_many_iterations(daemon, path):
    """A header cannot keep a thread busy for hours."""
    images.patch(path, SLOT + 4, be32(0xFFFFFFFF))
    served = daemon(*SECRET)
    with pytest.raises(QmpError, match='Keyslot 0 would take too long'):
        open_volume(served, path)
