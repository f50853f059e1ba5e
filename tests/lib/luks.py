# SPDX-License-Identifier: Apache-2.0
"""LUKS volumes and the programs that make and open them."""

import hashlib
import json
import struct
import subprocess

import pytest

from lib.qmp import dashed
from lib.tools import need

MIB = 1 << 20
PASSWORD = 'a pass,word=\u00e4'
SECRET = ('--object', json.dumps({'qom-type': 'secret', 'id': 's', 'data': PASSWORD}))
OTHER = ('--object', 'secret,id=t,data=other')

SIZE = 2 * MIB + 512
# cipher-alg, cipher-mode, ivgen-alg, ivgen-hash-alg, hash-alg
COMBINATIONS = [
    ('aes-256', 'xts', 'plain64', None, 'sha256'),
    ('aes-128', 'xts', 'plain', None, 'sha1'),
    ('aes-192', 'xts', 'plain64', None, 'sha512'),
    ('aes-256', 'xts', 'essiv', 'sha256', 'sha384'),
    ('aes-256', 'cbc', 'essiv', 'sha256', 'sha256'),
    ('aes-128', 'cbc', 'plain64', None, 'sha224'),
    ('aes-256', 'ctr', 'plain64', None, 'ripemd160'),
    ('aes-256', 'ecb', 'plain64', None, 'sha256'),
    ('cast5-128', 'cbc', 'plain64', None, 'sha256'),
    ('cast5-128', 'cbc', 'essiv', 'md5', 'sha256'),
    ('serpent-256', 'xts', 'plain64', None, 'sha256'),
    ('serpent-128', 'cbc', 'essiv', 'md5', 'sha256'),
    ('serpent-192', 'xts', 'plain', None, 'sha256'),
    ('twofish-128', 'cbc', 'plain', None, 'sha1'),
]
NAMES = ('cipher-alg', 'cipher-mode', 'ivgen-alg', 'ivgen-hash-alg', 'hash-alg')


def cipher_options(combination):
    return {name: value for name, value in zip(NAMES, combination) if value}


def open_volume(served, path, name='l', secret='s', **more):
    served.blockdev_add(
        driver='luks', node_name=name, key_secret=secret, file={'driver': 'file', 'filename': str(path)}, **more
    )


def connect(served, name='l'):
    served.export(name, writable=True)
    return served.connect(name)


def close(served):
    served.unexport('exp-l', mode='hard')
    served.cmd('blockdev-del', node_name='l')


def make(served, path, combination=COMBINATIONS[0], size=SIZE, **more):
    path.touch()
    served.blockdev_add(driver='file', node_name='new', filename=str(path))
    served.qmp.run_job(
        'create',
        'blockdev-create',
        options={
            'driver': 'luks',
            'file': 'new',
            'size': size,
            'key-secret': 's',
            'iter-time': 20,
            **cipher_options(combination),
            **more,
        },
    )
    served.cmd('blockdev-del', node_name='new')


def amend(served, force=False, **options):
    given = {'driver': 'luks', **dashed(options)}
    served.qmp.run_job('amend', 'x-blockdev-amend', node_name='l', options=given, force=force)


def cryptsetup(*command, password=PASSWORD):
    """A command that takes the password from its standard input."""
    done = subprocess.run(
        ['cryptsetup', *map(str, command), '-q', '--key-file=-'], input=password.encode(), capture_output=True
    )
    assert done.returncode == 0, (command, done.stderr)


def cryptsetup_opens(path, password=PASSWORD, code=0):
    done = subprocess.run(
        ['cryptsetup', 'open', '--test-passphrase', '--key-file=-', path], input=password.encode(), capture_output=True
    )
    assert done.returncode == code, done.stderr


def volume_key(path, tmp, password=PASSWORD):
    """As cryptsetup finds it."""
    key = tmp / 'volume.key'
    key.unlink(missing_ok=True)
    cryptsetup('luksDump', '--dump-volume-key', '--volume-key-file', key, path, password=password)
    return key.read_bytes()


def decrypt(data, key, mode, sector, first=0, encrypt=False):
    """AES as dm-crypt does it, by the cryptography library; first counts in 512 bytes as the vectors do."""
    ciphers = pytest.importorskip(
        'cryptography.hazmat.primitives.ciphers', reason='missing package python3-cryptography'
    )
    out = bytearray()
    for at in range(0, len(data), sector):
        number = struct.pack('<QQ', first + at // 512, 0)
        kind = ciphers.modes.XTS(number) if mode == 'xts' else ciphers.modes.CBC(number)
        cipher = ciphers.Cipher(ciphers.algorithms.AES(key), kind)
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        out += context.update(data[at : at + sector]) + context.finalize()
    return bytes(out)


# ---- The metadata of version 2 ----

CHECKSUM_AT, JSON_AT = 448, 4096


class Metadata2:
    """One copy of it in a file: the JSON area as `json`, the binary header as `head`."""

    def __init__(self, path, offset=0):
        self.path, self.offset = path, offset
        with open(path, 'rb') as file:
            file.seek(offset)
            self.head = bytearray(file.read(JSON_AT))
            self.size = struct.unpack_from('>Q', self.head, 8)[0]
            self.json = json.loads(file.read(self.size - JSON_AT).rstrip(b'\0'))

    def text(self):
        return json.dumps(self.json).encode()

    def write(self, area=None, checksum=True):
        """Puts it back, or another area, with the right checksum (or the one that it has)."""
        area = (self.text() if area is None else area).ljust(self.size - JSON_AT, b'\0')
        assert len(area) == self.size - JSON_AT
        if checksum:
            self.head[CHECKSUM_AT : CHECKSUM_AT + 64] = bytes(64)
            digest = hashlib.sha256(self.head + area).digest()
            self.head[CHECKSUM_AT : CHECKSUM_AT + len(digest)] = digest
        with open(self.path, 'r+b') as file:
            file.seek(self.offset)
            file.write(self.head + area)


def edit(path, change):
    """Applies change(json) to both copies."""
    first = Metadata2(path)
    for offset in (0, first.size):
        copy = Metadata2(path, offset)
        change(copy.json)
        copy.write()


def format2(path, *options, size=2 * MIB, password=PASSWORD):
    """A volume of version 2 with so many bytes of data behind a header of 16 MiB, cheap to open."""
    need('cryptsetup')
    if not path.exists():
        with open(path, 'wb') as file:
            file.truncate(16 * MIB + size)
    if '--pbkdf' not in options:
        options = (*options, '--pbkdf', 'pbkdf2')
    cheap = ['--pbkdf-force-iterations', 1000 if 'pbkdf2' in options else 4]
    if 'pbkdf2' not in options and '--pbkdf-memory' not in options:
        cheap += ['--pbkdf-memory', 64]
    cryptsetup('luksFormat', '--type', 'luks2', *cheap, *options, path, password=password)
