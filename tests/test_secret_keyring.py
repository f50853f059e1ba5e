# SPDX-License-Identifier: Apache-2.0
"""Secrets that the kernel keeps."""

import base64
import ctypes
import json
import os

import pytest

from lib import images
from lib.luks import open_volume
from lib.qmp import QmpError
from lib.tools import need

ADD_KEY, KEYCTL, UNLINK, USER_KEYRING = 248, 250, 9, -4
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def add_key():
    """Puts a key into the kernel until the test ends; returns its serial number."""
    keys = []

    def add(data):
        name = b'granary-test-%d-%d' % (os.getpid(), len(keys))
        serial = LIBC.syscall(ADD_KEY, b'user', name, data, ctypes.c_size_t(len(data)), ctypes.c_int(USER_KEYRING))
        if serial < 0:
            pytest.skip(f'the kernel keeps no keys here: {os.strerror(ctypes.get_errno())}')
        keys.append(serial)
        return serial

    yield add
    for serial in keys:
        LIBC.syscall(KEYCTL, UNLINK, serial, ctypes.c_int(USER_KEYRING))


def volume(path, password):
    need('qemu-img')
    encoded = base64.b64encode(password).decode()
    secret = ('--object', f'secret,id=s,data={encoded},format=base64')
    images.create_encrypted('-f', 'luks', *secret, '-o', 'key-secret=s,iter-time=20', path, 1 << 20)


def test_a_key_opens_a_volume(daemon, tmp, add_key):
    """With every byte of it, also after it has gone from the kernel."""
    password = ''.join(map(chr, range(1, 500))).encode()  # the reference wants text
    volume(tmp / 'a.luks', password)
    serial = add_key(password)
    served = daemon('--object', f'secret_keyring,id=s,serial={serial}')
    LIBC.syscall(KEYCTL, UNLINK, serial, ctypes.c_int(USER_KEYRING))
    open_volume(served, tmp / 'a.luks')
    served.cmd('blockdev-del', node_name='l')
    served.cmd('object-del', id='s')
    with pytest.raises(QmpError, match="No secret with id 's'"):
        open_volume(served, tmp / 'a.luks')


def test_formats(daemon, tmp, add_key):
    """Base64, and encrypted with another key of the kernel (openssl enc -aes-256-cbc, key and vector of zeroes)."""
    volume(tmp / 'a.luks', b'hello')
    served = daemon()
    master, coded = add_key(bytes(32)), add_key(b'aGVsbG8=')
    encrypted = add_key(bytes.fromhex('c235de24d239e03cc8e377c604fca67b'))
    served.cmd('object-add', qom_type='secret_keyring', id='master', serial=master)
    served.cmd('object-add', qom_type='secret_keyring', id='coded', serial=coded, format='base64')
    iv = base64.b64encode(bytes(16)).decode()
    served.cmd('object-add', qom_type='secret_keyring', id='sealed', serial=encrypted, keyid='master', iv=iv)
    for name in 'coded', 'sealed':
        open_volume(served, tmp / 'a.luks', secret=name)
        served.cmd('blockdev-del', node_name='l')
    for options, message in (
        ({'serial': coded, 'keyid': 'coded'}, 'Key should be 32 bytes in length'),
        ({'serial': encrypted, 'keyid': 'master'}, 'IV is required to decrypt secret'),
        ({'serial': encrypted, 'format': 'base64'}, 'Base64 data contains invalid characters'),
        ({'serial': 0}, "'serial' should not be equal to 0"),
        ({'serial': 1}, 'Unable to read serial key 00000001: Required key not available'),
    ):
        with pytest.raises(QmpError, match=message):
            served.cmd('object-add', qom_type='secret_keyring', id='x', **options)


def test_the_key_is_not_shown(daemon, add_key):
    served = daemon('--object', f'secret_keyring,id=s,serial={add_key(b"kLmNoPqRsT")}')
    said = [served.cmd('query-named-block-nodes')]
    shown = sorted(item['name'] for item in served.cmd('qom-list', path='/objects/s'))
    assert shown == ['format', 'iv', 'keyid', 'serial', 'type']
    for item in served.cmd('qom-list', path='/objects/s'):
        said.append(served.cmd('qom-get', path='/objects/s', property=item['name']))
    assert 'kLmNoPqRsT' not in json.dumps(said)
