# SPDX-License-Identifier: Apache-2.0
"""QEMU as the user of Granary's reservation helper, and Granary's manager with QEMU's, on a real LUN."""

import lzma
import pathlib
import struct

import pytest

from lib import peers
from lib.daemon import BINARY
from lib.debian import Unavailable, unpacked_kernel
from lib.guest import Guest, run_or_skip
from lib.tools import TOP, need

pytestmark = pytest.mark.guest

HERE = TOP / 'tests' / 'guest'
BUILD = pathlib.Path(BINARY).absolute().parents[1]
GRANARYD = BUILD / 'src' / 'programs' / 'granaryd'
HELPER = BUILD / 'src' / 'pr-helper' / 'granary-pr-helper'
QEMU = '/usr/bin/qemu-system-x86_64'
ACCELERATOR = '/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so'
FIRMWARE = [
    ('/usr/share/seabios/bios-256k.bin', '/firmware/bios-256k.bin'),
    ('/usr/share/qemu/pvh.bin', '/firmware/pvh.bin'),
]
DRIVER = [(HERE / name, f'/lab/{name}') for name in ('chain.py', 'qtest_scsi.py')]


def newer():
    """The folder of QEMU 10's programs."""
    root = peers.qemu_10()
    if root is None:
        pytest.skip('missing QEMU 10 of bookworm-backports (tests/lib/peers.py unpacks it)')
    return root / 'usr' / 'bin'


def plain_kernel(version):
    """The kernel of a guest without the decompressor around it (x86 boot protocol: payload_offset)."""
    image = next(unpacked_kernel(version).glob('boot/vmlinuz-*')).read_bytes()
    sectors = image[0x1F1] or 4
    offset, size = struct.unpack_from('<II', image, 0x248)
    payload = image[(sectors + 1) * 512 + offset :][:size]
    return lzma.LZMADecompressor().decompress(payload)


def test_qemu_with_every_helper():
    """Both QEMUs, each with its own helper, which proves the script, and with Granary's."""
    need('qemu-system-x86_64', 'qemu-pr-helper')
    new = newer()
    guest = Guest(
        'lio',
        memory=640,
        programs=[
            (QEMU, QEMU), ('/usr/bin/qemu-pr-helper', '/opt/7/pr-helper'), (HELPER, '/opt/granary-pr-helper'),
            (new / 'qemu-system-x86_64', '/opt/10/qemu'), (new / 'qemu-pr-helper', '/opt/10/pr-helper'),
        ],
        files=[(ACCELERATOR, ACCELERATOR), *DRIVER],
    )  # fmt: skip
    combinations = [
        f'qemu7-qemu7:{QEMU}:pc:/opt/7/pr-helper',
        'qemu10-qemu10:/opt/10/qemu:q35:/opt/10/pr-helper',
        f'qemu7-granary:{QEMU}:pc:/opt/granary-pr-helper',
        'qemu10-granary:/opt/10/qemu:q35:/opt/granary-pr-helper',
    ]
    run_or_skip(guest, 'qemu_consumer.py', combinations, timeout=400).verify()


def test_nested_guest(tmp):
    """A whole guest in the guest, whose sg_persist reserves the disk."""
    need('qemu-system-x86_64')
    kernel = tmp / 'vmlinux'
    try:
        kernel.write_bytes(plain_kernel('6.1'))
    except Unavailable as why:
        pytest.skip(f'no guest: {why}')
    guest = Guest(
        'lio',
        kernel='6.1',
        memory=768,
        programs=[(QEMU, QEMU), (HELPER, '/opt/granary-pr-helper')],
        files=[(ACCELERATOR, ACCELERATOR), (kernel, '/opt/vmlinux'), *FIRMWARE],
    )
    arguments = [QEMU, '/opt/granary-pr-helper', '/opt/vmlinux']
    run_or_skip(guest, 'nested_guest.py', arguments, timeout=1000).verify()


def test_manager_with_every_helper():
    """Granary's manager with QEMU's helpers and its own."""
    need('qemu-system-x86_64', 'qemu-pr-helper')
    new = newer()
    guest = Guest(
        'lio',
        programs=[
            (GRANARYD, '/opt/granaryd'), ('/usr/bin/qemu-pr-helper', '/opt/7/pr-helper'),
            (new / 'qemu-pr-helper', '/opt/10/pr-helper'), (HELPER, '/opt/granary-pr-helper'),
        ],
        files=[(HERE / 'chain.py', '/lab/chain.py'), (HERE.parent / 'lib' / 'qmp.py', '/lab/lib/qmp.py')],
    )  # fmt: skip
    helpers = ['qemu7:/opt/7/pr-helper', 'qemu10:/opt/10/pr-helper', 'granary:/opt/granary-pr-helper']
    run_or_skip(guest, 'manager_and_helpers.py', ['/opt/granaryd', *helpers], timeout=300).verify()
