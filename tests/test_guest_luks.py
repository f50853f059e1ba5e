# SPDX-License-Identifier: Apache-2.0
"""LUKS volumes that this program and the kernel's dm-crypt write by turns; each reads what the other has written.

The guest has the files of a volume as disks. What cryptsetup has formatted is filled through dm-crypt; then the daemon
reads and changes it, the guest does, and the daemon reads it. What the daemon has made it fills itself.
"""

import dataclasses
import json
import sys
from collections.abc import Callable

import pytest

from lib.guest import Guest, parse_checks, start_or_skip
from lib.luks import (
    COMBINATIONS,
    MIB,
    OTHER,
    PASSWORD,
    SECRET,
    amend,
    close,
    connect,
    cryptsetup,
    make,
    open_volume,
)
from lib.qmp import QmpError
from lib.tools import TOP, libnbd, need

sys.path.insert(0, str(TOP / 'tests' / 'guest'))
from luks_content import Contents  # noqa: E402

pytestmark = pytest.mark.guest

CONTENT_MODULE = (TOP / 'tests/guest/luks_content.py', '/lab/luks_content.py')
SIZE = MIB + 4096
PIECE = 17 * 4096  # read at once
HEAD = 16 * MIB  # of volumes of version 2
OVER_32_BITS = (1 << 32) * 512 - MIB // 2  # from there on the numbers of some sectors are larger
THIRD = ('--object', 'secret,id=u,data=third')

# What cryptsetup formats: cheap to open, but else as it likes.
LUKS1 = ('--type', 'luks1', '--pbkdf-force-iterations', 1000)
PBKDF2 = ('--type', 'luks2', '--pbkdf', 'pbkdf2', '--pbkdf-force-iterations', 1000)
ARGON2I, ARGON2ID = (
    ('--type', 'luks2', '--pbkdf', kind, '--pbkdf-force-iterations', 4, '--pbkdf-memory', 64)
    for kind in ('argon2i', 'argon2id')
)


@dataclasses.dataclass
class Volume:
    name: str
    format: tuple = ()  # options of luksFormat
    make: Callable = None  # or what has the daemon make it
    payload: int = HEAD  # where luksFormat lets the data begin
    sector: int = 512
    base: int = 0  # from there to its end the volume is used
    detached: bool = False
    # For each turn here: the secret, those that are refused, and the changes of the keys at its end. For the guest's see
    # change_keys() in guest/luks.py.
    keys: tuple = (('s', (), ()),) * 3
    guest_keys: tuple = ({}, {})

    def prepare(self, served, folder, seed):
        self.data, self.header = folder / f'{self.name}.data', folder / f'{self.name}.head'
        self.seed, self.contents = seed, Contents(self.name, seed, SIZE, self.sector, self.base)
        if self.make:
            self.make(self, served)
            self.take_turn(served, 0)
            return
        truncate(self.data, self.payload + self.base + SIZE)
        truncate(self.header, HEAD)
        if not self.in_guest():
            header = ('--header', self.header) if self.detached else ()
            cryptsetup('luksFormat', *self.format, *header, self.data)
        self.contents.writes()  # the guest's

    def in_guest(self):
        """Whether it is formatted there, which is slower: what its library does not have cryptsetup asks the kernel for."""
        return any(str(option).startswith(('cast5', 'serpent', 'twofish', '384')) for option in self.format)

    def files(self):
        return [self.data, self.header] if self.detached else [self.data]

    def open(self, served, secret, name='l'):
        header = {'header': {'driver': 'file', 'filename': str(self.header)}} if self.detached else {}
        open_volume(served, self.data, name, secret, **header)

    def take_turn(self, served, number):
        """Reads and, before the last turn of the guest, writes."""
        print(f'turn {number} of {self.name}')
        secret, refused, amendments = self.keys[number]
        for other in refused:
            with pytest.raises(QmpError, match='Invalid password'):
                self.open(served, other)
        self.open(served, secret)
        handle = connect(served)
        assert handle.get_size() == self.base + SIZE
        if self.contents.data:
            starts = range(0, SIZE, PIECE)
            self.contents.compare(b''.join(handle.pread(min(PIECE, SIZE - at), self.base + at) for at in starts))
        if number < 2:
            for offset, data in self.contents.writes():
                handle.pwrite(data, offset)
            self.contents.writes()  # the guest's
        handle.shutdown()
        for amendment in amendments:
            amend(served, **amendment)
        close(served)

    def for_guest(self, lun):
        """What guest/luks.py wants to know; the first file has that LUN."""
        usual = {'password': PASSWORD, 'opens': (), 'refused': ()}
        return {
            'name': self.name,
            'lun': lun,
            'header': lun + 1 if self.detached else None,
            'format': self.format if self.in_guest() else (),
            'filled': bool(self.make),
            'password': PASSWORD,
            'contents': (self.name, self.seed, SIZE, self.sector, self.base),
            'turns': [{**usual, **turn} for turn in self.guest_keys],
        }


def truncate(path, size):
    with open(path, 'wb') as file:
        file.truncate(size)


# ---- The volumes ----


def luks1(cipher, bits, *options, **more):
    name = f'luks1-{cipher}-{bits}'.replace(':', '-')
    payload = MIB if bits < 256 else 2 * MIB  # room for eight keys, in MiB
    return Volume(name, (*LUKS1, '--cipher', cipher, '--key-size', bits, *options), **{'payload': payload, **more})


def luks2(name, sector, *options, **more):
    if sector:
        options += ('--sector-size', sector)
    return Volume(f'luks2-{name}', options, sector=sector or 4096, **more)


def made(combination, **more):
    """By blockdev-create."""

    def create(volume, served):
        options = {}
        if volume.detached:
            volume.header.touch()
            options['header'] = {'driver': 'file', 'filename': str(volume.header)}
        make(served, volume.data, combination, SIZE + volume.base, **{'iter-time': 1}, **options)

    return Volume(**{'name': '-'.join(['made', *filter(None, combination)]), 'make': create, **more})


FORMATTED = [
    luks1('aes-xts-plain64', 256, '--hash', 'sha1'),
    luks1('aes-xts-plain64', 384, '--hash', 'sha512'),
    luks1('aes-xts-plain64', 512, base=OVER_32_BITS),
    luks1('aes-xts-plain', 512, base=OVER_32_BITS),
    luks1('aes-cbc-essiv:sha256', 128, '--hash', 'ripemd160'),
    luks1('aes-cbc-essiv:sha256', 256, detached=True, payload=0),
    luks1('aes-cbc-plain64', 256, '--offset', 6144, payload=3 * MIB),
    luks1('aes-cbc-plain', 192),
    luks1('cast5-cbc-essiv:md5', 128),
    luks1('serpent-xts-plain64', 512, '--key-slot', 7),
    luks1('serpent-cbc-essiv:sha256', 256),
    luks1('twofish-xts-plain64', 512),
    luks1('twofish-cbc-plain64', 192),
    luks2('as-it-likes', None, *ARGON2ID),
    luks2('xts', 512, *ARGON2ID),
    luks2('xts-1024', 1024, *ARGON2I, '--key-size', 256),
    luks2('xts-4096', 4096, *PBKDF2, base=OVER_32_BITS),
    luks2('serpent', 1024, *PBKDF2, '--cipher', 'serpent-xts-plain64', '--key-size', 384),
    luks2('twofish', 4096, *ARGON2I, '--cipher', 'twofish-xts-plain64', '--key-size', 384),
    luks2('cbc', 2048, *ARGON2ID, '--cipher', 'aes-cbc-plain64', '--key-size', 256),
    luks2('essiv', 4096, *ARGON2ID, '--cipher', 'aes-cbc-essiv:sha256', '--key-size', 256),
    luks2('plain', 4096, *PBKDF2, '--cipher', 'aes-xts-plain', base=OVER_32_BITS),
    luks2('cast5', 1024, *PBKDF2, '--cipher', 'cast5-cbc-plain64', '--key-size', 128),
    luks2('offset', 512, *PBKDF2, '--offset', 49152, payload=24 * MIB),
    luks2('detached', 4096, *ARGON2ID, detached=True, payload=0),
    luks2('detached-offset', 512, *ARGON2I, '--offset', 2048, detached=True, payload=MIB),
    luks2(
        'keys',
        512,
        *PBKDF2,
        keys=((), ('t', ('s',), ()), ('u', ('s', 't'), ())),
        guest_keys=({'add': 'other', 'remove': PASSWORD}, {'password': 'other', 'add': 'third', 'remove': 'other'}),
    ),
]
KEYS = {  # each side adds some and removes the other's
    'keys': (
        ('s', (), ({'state': 'active', 'new_secret': 't', 'iter_time': 1, 'keyslot': 5},)),
        ('t', (), ({'state': 'inactive', 'old_secret': 's'},)),
        ('u', ('s', 't'), ()),
    ),
    'guest_keys': (
        {'password': 'other', 'opens': [PASSWORD]},
        {'password': 'other', 'refused': [PASSWORD], 'add': 'third', 'remove': 'other'},
    ),
}
MADE = [
    made(COMBINATIONS[0], name='made-detached', detached=True),
    made(COMBINATIONS[0], name='made-keys', **KEYS),
    made(COMBINATIONS[4], name='made-keys-detached', detached=True, **KEYS),
    # What QEMU's headers call ecb-plain64 has no such suffix in cryptsetup's.
    *(made(names) for n, names in enumerate(COMBINATIONS) if n not in (0, 4) and names[1] != 'ecb'),
]


def disks(files):
    """QEMU's options: the n-th file has LUN n."""
    options = ['-device', 'virtio-scsi-pci']
    for lun, path in enumerate(files):
        node = {'driver': 'file', 'node-name': f'disk{lun}', 'filename': str(path), 'locking': 'off'}
        options += ['-blockdev', json.dumps(node), '-device', f'scsi-hd,drive=disk{lun},lun={lun}']
    return options


@pytest.mark.better
def test_by_turns_with_dm_crypt(tmp, daemon, rng):
    need('qemu-system-x86_64', 'cryptsetup')
    libnbd()
    volumes = FORMATTED + MADE
    served = daemon(*SECRET, *OTHER, *THIRD, nbd=True)
    files, described = [], []
    for volume in volumes:
        volume.prepare(served, tmp, rng.getrandbits(32))
        described.append(volume.for_guest(len(files)))
        files += volume.files()
    guest = Guest(
        programs=['cryptsetup'], files=[CONTENT_MODULE], qemu_args=disks(files), append='cryptomgr.notests'
    )
    with start_or_skip(guest, 'luks.py', [json.dumps(described)]) as machine:
        machine.wait_for('host', 300)
        if all(check.passed for check in parse_checks(machine.output)):
            for volume in volumes:
                volume.take_turn(served, 1)
            machine.tell('guest')
        else:
            machine.tell('end')
        machine.finish(600).verify()
    for volume in volumes:
        volume.take_turn(served, 2)
