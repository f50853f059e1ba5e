# SPDX-License-Identifier: Apache-2.0
"""Encrypted volumes in a guest: formatted and opened by cryptsetup, read and written through dm-crypt. The argument is
JSON: the volumes, as tests/test_guest_luks.py describes them. Between the two turns it is the host's.
"""

import glob
import json
import mmap
import os
import sys

from lab import at, check, hear, main, modprobe, run, wait
from luks_content import Contents

PIECE = 1 << 18
MODULES = 'virtio_pci virtio_scsi sd_mod dm-mod dm-crypt algif_skcipher'.split()
CHEAP = ('--pbkdf', 'pbkdf2', '--pbkdf-force-iterations', 1000)

volumes = json.loads(sys.argv.pop(1))


def disk(lun):
    """Its device, or nothing as long as there is none."""
    found = glob.glob(f'/sys/bus/scsi/devices/0:0:0:{lun}/block/*')
    return found and f'/dev/{os.path.basename(found[0])}'


def password_file(password):
    with open('/run/password', 'w') as file:
        file.write(password)
    return '--key-file=/run/password'


def header_option(volume):
    return ('--header', disk(volume['header'])) if volume['header'] is not None else ()


def format_volume(volume):
    key = password_file(volume['password'])
    run('cryptsetup', 'luksFormat', '-q', *volume['format'], *header_option(volume), key, disk(volume['lun']))


class Mapping:
    """A volume that is open at /dev/mapper, past the caches."""

    def __init__(self, volume, password):
        self.name, self.buffer = volume['name'], mmap.mmap(-1, PIECE)
        run('cryptsetup', 'open', disk(volume['lun']), self.name, *header_option(volume), password_file(password))

    def __enter__(self):
        self.fd = os.open(f'/dev/mapper/{self.name}', os.O_RDWR | os.O_DIRECT)
        return self

    def __exit__(self, *_):
        os.close(self.fd)
        run('dmsetup', 'remove', self.name)  # what cryptsetup would do, in a third of its time

    def size(self):
        return os.lseek(self.fd, 0, os.SEEK_END)

    def read(self, offset, length):
        found = bytearray()
        while len(found) < length:
            room = min(PIECE, length - len(found))
            with memoryview(self.buffer)[:room] as piece:
                count = os.preadv(self.fd, [piece], offset + len(found))
                assert count > 0, f'the volume ends at {offset + len(found)}'
                found += piece[:count]
        return found

    def write(self, offset, data):
        for start in range(0, len(data), PIECE):
            part = data[start : start + PIECE]
            self.buffer[: len(part)] = part
            with memoryview(self.buffer)[: len(part)] as piece:
                assert os.pwrite(self.fd, piece, offset + start) == len(part)


def opens(volume, password):
    command = ('cryptsetup', 'open', '--test-passphrase', disk(volume['lun']), *header_option(volume))
    return run(*command, password_file(password), ok=(0, 2)).returncode == 0


def change_keys(volume, turn):
    target = volume['lun'] if volume['header'] is None else volume['header']
    if 'add' in turn:
        with open('/run/added', 'w') as file:
            file.write(turn['add'])
        run('cryptsetup', 'luksAddKey', '-q', *CHEAP, password_file(turn['password']), disk(target), '/run/added')
    if 'remove' in turn:
        run('cryptsetup', 'luksRemoveKey', '-q', disk(target), password_file(turn['remove']))


def take_turn(volume, number):
    turn, contents = volume['turns'][number], volume['contents']
    if number == 0 and volume['format']:
        format_volume(volume)
    for password in turn['opens']:
        assert opens(volume, password), f'{password} does not open it'
    for password in turn['refused']:
        assert not opens(volume, password), f'{password} still opens it'
    with Mapping(volume, turn['password']) as mapping:
        size = contents.base + contents.size
        assert mapping.size() == size, f'{mapping.size()} bytes instead of {size}'
        if contents.data:
            contents.compare(mapping.read(contents.base, contents.size))
        for offset, data in contents.writes():
            mapping.write(offset, data)
    change_keys(volume, turn)
    contents.writes()  # the host's


def add_turn(number):
    for volume in volumes:

        def one(volume=volume):
            take_turn(volume, number)

        one.__name__ = f'{volume["name"]}-{number + 1}'
        check(one)


@check
def disks_are_there():
    modprobe(*MODULES)
    for volume in volumes:
        for lun in volume['lun'], volume['header'] or volume['lun']:
            wait(lambda n=lun: disk(n) and os.path.exists(disk(n)), f'no disk of {volume["name"]}')
        volume['contents'] = Contents(*volume['contents'])
        if volume['filled']:
            volume['contents'].writes()  # the host's


add_turn(0)


@check(deadline=300)
def host_takes_its_turn():
    at('host')
    if hear() == 'end':
        sys.exit('something has failed here')


add_turn(1)
main()
