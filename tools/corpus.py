#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes seeds for the fuzz targets from what the tests know: corpus.py DIRECTORY writes DIRECTORY/TARGET/*.

QMP lines, command lines and NBD conversations come from tests/differential/, images from qemu-img.
"""

import hashlib
import importlib
import json
import pathlib
import pkgutil
import random
import shutil
import struct
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / 'tests'))
sys.dont_write_bytecode = True

import differential  # noqa: E402
from lib import nbdwire  # noqa: E402
from lib.differential import Cli, Nbd, Qmps  # noqa: E402

LARGEST = 32768


def cases():
    for module in pkgutil.iter_modules(differential.__path__):
        yield from getattr(importlib.import_module(f'differential.{module.name}'), 'CASES', [])


def save(directory, target, data):
    if 0 < len(data) <= LARGEST:
        folder = directory / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


def nbd_bytes(steps):
    """(handshake, requests) as a client would send them."""
    handshake, requests, extended = b'', b'', False
    for kind, *rest in steps:
        if kind == 'flags' and rest[0] is not None:
            handshake += struct.pack('>I', rest[0])
        elif kind == 'opt':
            option, payload, *_ = rest
            handshake += struct.pack('>QII', nbdwire.IHAVEOPT, option, len(payload)) + payload
        elif kind == 'export-name':
            handshake += struct.pack('>QII', nbdwire.IHAVEOPT, 1, len(rest[0])) + rest[0]
        elif kind == 'ext':
            handshake += struct.pack('>QII', nbdwire.IHAVEOPT, nbdwire.OPT_EXTENDED, 0)
            extended = True
        elif kind == 'req':
            command, offset, length, *more = rest
            flags = more[0] if more else 0
            payload = more[1] if len(more) > 1 else b''
            if extended:
                requests += (
                    struct.pack('>IHHQQQ', nbdwire.EXTENDED_REQUEST_MAGIC, flags, command, 1, offset, length)
                    + payload
                )
            else:
                requests += (
                    struct.pack(
                        '>IHHQQI', nbdwire.REQUEST_MAGIC, flags, command, 1, offset, length & 0xFFFFFFFF
                    )
                    + payload
                )
    return handshake, requests, extended


def from_cases(directory):
    for case in cases():
        if isinstance(case, Qmps):
            for line in case.lines:
                save(
                    directory,
                    'json',
                    line
                    if isinstance(line, bytes)
                    else json.dumps(line).encode()
                    if isinstance(line, dict)
                    else b'',
                )
        elif isinstance(case, Cli):
            for option, value in zip(case.args, case.args[1:]):
                target = {
                    '--chardev': 'chardev-options',
                    '--blockdev': 'keyval',
                    '--object': 'keyval',
                    '--export': 'keyval',
                    '--monitor': 'keyval',
                    '--nbd-server': 'keyval',
                }.get(option)
                if target:
                    save(directory, target, value.encode())
        elif isinstance(case, Nbd):
            handshake, requests, extended = nbd_bytes(case.steps)
            for name in (b'e0', b'sparse', b'null', b'top'):  # the names inside are the target's own export
                handshake = handshake.replace(
                    struct.pack('>I', len(name)) + name, struct.pack('>I', 2) + b'e0'
                )
            save(directory, 'nbd-options', handshake)
            save(directory, 'nbd-session', handshake + requests)
            for mode in (2,) if extended else (0, 1):
                save(directory, 'nbd-requests', bytes([mode | 8]) + requests)


def from_images(directory):
    if not shutil.which('qemu-img'):
        return
    options = [
        'cluster_size=512',
        'cluster_size=512,compat=0.10',
        'cluster_size=512,refcount_bits=1',
        'cluster_size=512,refcount_bits=64',
        'cluster_size=1024,lazy_refcounts=on',
        'cluster_size=512,compression_type=zstd',
        'cluster_size=16384,extended_l2=on',
        'cluster_size=512,preallocation=metadata',
    ]
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / 'image'
        for option in options:
            subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', option, path, '64K'], check=True)
            commands = [
                argument
                for _ in range(6)
                for argument in (
                    '-c',
                    f'{rng.choice(("write", "write -c", "write -z"))} {512 * rng.randrange(32) * 2} 1024',
                )
            ]
            subprocess.run(
                ['qemu-io', '-f', 'qcow2', *commands, path],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            data = path.read_bytes()
            save(directory, 'qcow2-header', data[:4096])
            for end in (b'\1\0', b'\7\1', b'\x55\0'):
                save(directory, 'qcow2-image', data[: LARGEST - 2] + end)


def main():
    directory = pathlib.Path(sys.argv[1])
    from_cases(directory)
    from_images(directory)


if __name__ == '__main__':
    main()
