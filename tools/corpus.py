#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes seeds for the fuzz targets from what the tests know: corpus.py DIRECTORY writes DIRECTORY/TARGET/*.

QMP lines, command lines and NBD conversations come from tests/differential/, images from qemu-img, FUSE requests from here.
"""

import base64
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
import zlib

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
            subprocess.run(['qemu-img', 'snapshot', '-c', 'one', path], stderr=subprocess.DEVNULL, check=False)
            data = path.read_bytes()
            save(directory, 'qcow2-header', data[:4096])
            for end in (b'\1\0', b'\7\1', b'\x55\0'):
                save(directory, 'qcow2-image', data[: LARGEST - 2] + end)


def from_luks(directory):
    """A header with one key, of a volume with and without a payload of its own."""
    slots = [(0xAC71F3 if i == 0 else 0xDEAD, 1000, bytes(32), 8 + 504 * i, 4000) for i in range(8)]
    for mode, key_bytes in (b'xts-plain64', 64), (b'cbc-essiv:sha256', 32):
        for detached, payload in (0, 4040), (1, 0):
            header = b'LUKS\xba\xbe\0\1' + struct.pack('>32s32s32sII', b'aes', mode, b'sha256', payload, key_bytes)
            header += struct.pack('>20s32sI40s', b'd' * 20, b's' * 32, 1000, b'uuid')
            packed = b''.join(struct.pack('>II32sII', *slot) for slot in slots)
            for target in 'luks', 'luks-volume':
                save(directory, target, bytes([detached]) + header + packed)
    from_luks2(directory)


def from_luks2(directory):
    """Volumes of version 2 for each key derivation; the first byte says how the target stores the copies."""
    salt = base64.b64encode(bytes(32)).decode()
    kdfs = [{'type': name, 'time': 4, 'memory': 32, 'cpus': 1, 'salt': salt} for name in ('argon2i', 'argon2id')]
    kdfs.append({'type': 'pbkdf2', 'hash': 'sha256', 'iterations': 1000, 'salt': salt})
    for number, kdf in enumerate(kdfs):
        for choice in 2, 3, 6, 10, 26:
            cipher, key_bytes = (('aes-xts-plain64', 64), ('aes-cbc-essiv:sha256', 32))[number % 2]
            area = {'type': 'raw', 'offset': '32768', 'size': '258048', 'encryption': cipher, 'key_size': key_bytes}
            af = {'type': 'luks1', 'stripes': 4000, 'hash': 'sha256'}
            slot = {'type': 'luks2', 'key_size': key_bytes, 'af': af, 'area': area, 'kdf': kdf, 'priority': 2}
            digest = {'type': 'pbkdf2', 'keyslots': ['0'], 'segments': ['0'], 'hash': 'sha256', 'iterations': 1000}
            digest.update(salt=salt, digest=salt)
            size = ('dynamic', '1048576')[number % 2]
            segment = {'type': 'crypt', 'offset': '16777216', 'size': size, 'iv_tweak': '0', 'encryption': cipher}
            segment['sector_size'] = (512, 4096)[number % 2]
            config = {'json_size': '12288', 'keyslots_size': '16744448'}
            area = {'keyslots': {'0': slot}, 'tokens': {}, 'segments': {'0': segment}, 'digests': {'0': digest}}
            head = b'LUKS\xba\xbe\0\2' + struct.pack('>QQ48s32s64s40s', 16384, 3, b'label', b'sha256', b'', b'uuid')
            text = json.dumps({**area, 'config': config}).encode()
            save(directory, 'luks-volume', bytes([choice]) + head.ljust(512, b'\0') + text)


def from_bitmaps(directory):
    """A directory as qemu-img makes it: cluster bits, the extension's data, the entries. And the head of a journal."""
    extension = struct.pack('>2I2Q', 1, 8192, 0x50000, 0)
    page = b'GrnBmLog' + struct.pack('>2IQ', 1, 16, 1 << 20) + bytes(40) + struct.pack('>Q', 0x30000) * 504
    save(directory, 'qcow2-bitmap', bytes([7]) + extension + page)
    if not shutil.which('qemu-img'):
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / 'image'
        for bits in (9, 12, 16, 21):
            option = f'cluster_size={1 << bits}'
            subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', option, path, '1M'], check=True)
            for number, extra in enumerate(((), ('--disable',), ('-g', '512'), ('-g', '64K'))):
                add = ['qemu-img', 'bitmap', '--add', *extra, path, 'b' * (1 + 40 * number)]
                # A cluster of 512 bytes may have no room for the extension.
                subprocess.run(add, check=bits > 9, stderr=subprocess.DEVNULL)
            data = path.read_bytes()
            at = data.find(struct.pack('>2I', 0x23852875, 24)) + 8
            if at < 8:
                continue
            size, offset = struct.unpack('>2Q', data[at + 8 : at + 24])
            save(directory, 'qcow2-bitmap', bytes([bits - 9]) + data[at : at + 24] + data[offset : offset + size])


def from_edits(directory):
    """Each kind of image as it is, and with one or two fields changed (drivers/qcow2/fuzz-edits.c)."""
    rng = random.Random(3)
    for target, shapes, kinds in ('qcow2-edits', 24, 11), ('qcow2-bitmap-edits', 10, 8):
        for shape in range(shapes):
            for use in 0, 1, 6, 14:
                save(directory, target, bytes([shape, 1, use]))
            for kind in range(kinds):
                for edit in range(10):
                    edits = struct.pack('>BHBI', kind, rng.randrange(40), edit, rng.randrange(1 << 16))
                    save(directory, target, bytes([shape, edit, rng.choice((0, 6, 14, 15))]) + edits)


FUSE_REQUESTS = [  # opcode, body
    (26, struct.pack('<5I', 7, 38, 65536, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(44)),
    (14, struct.pack('<2I', 0o40002, 0)),
    (3, bytes(16)),
    *((15, struct.pack('<2Q2IQ2I', 0, at, 4096, 0, 0, 0, 0)) for at in (0, 65000, 1 << 40)),
    *((16, struct.pack('<2Q2IQ2I', 0, at, 600, 0, 0, 0, 0) + bytes(600)) for at in (512, 65000, 70000)),
    *((4, struct.pack('<2I6Q8I', 8, 0, 0, size, *[0] * 12)) for size in (1000, 1 << 20)),
    (4, struct.pack('<2I6Q8I', 7, 0, *[0] * 9, 0o600, 0, 1, 2, 0)),
    *((43, struct.pack('<3Q2I', 0, 4096, 66000, mode, 0)) for mode in (0, 3, 16, 17, 8)),
    *((46, struct.pack('<2Q2I', 0, 0, whence, 0)) for whence in (3, 4)),
    (47, struct.pack('<7Q', 0, 0, 1, 0, 16384, 8192, 0)),
    *((opcode, bytes(24)) for opcode in (1, 2, 17, 18, 20, 25, 36, 38, 42)),
]


def from_codecs(directory):
    """Clusters, sound and truncated, in raw deflate, and in zstd frames of one block that repeats a byte."""
    for shift in range(8):
        size = 512 << shift
        cluster = bytes(i * i // 37 % 61 for i in range(size))
        packer = zlib.compressobj(level=shift + 1, wbits=-12)
        packed = packer.compress(cluster) + packer.flush()
        frame = struct.pack('<IBB', 0xFD2FB528, 0, 7 << 3) + (size << 3 | 3).to_bytes(3, 'little') + b'B'
        for part in (packed, packed[: len(packed) // 2], packed + bytes(300)):
            save(directory, 'qcow2-codec', bytes([shift << 1]) + part)
        for part in (frame, frame[:7], struct.pack('<II', 0x184D2A50, 4) + b'skip' + frame + bytes(300)):
            save(directory, 'qcow2-codec', bytes([shift << 1 | 1]) + part)


def from_fuse(directory):
    messages = [
        struct.pack('<2I2Q4I', 40 + len(body), opcode, 1, 1, *[0] * 4) + body
        for opcode, body in FUSE_REQUESTS
    ]
    for message in messages:
        save(directory, 'fuse', message)
    session = [struct.pack('<H', len(message)) + message for message in messages]
    for end in (b'', b'\0', b'\0' * 4):
        save(directory, 'fuse-session', b''.join(session) + end)
        for first in range(0, len(session), 4):
            save(directory, 'fuse-session', b''.join(session[first : first + 4]) + end)


NEXT, WRITE, INDIRECT, AVAILABLE = 1, 2, 4, 0x80


def virtqueue_memory(packed):
    """Rings of eight entries at 0, 128 and 256 with a chain of three, two lone descriptors and a table of three, at 512."""
    pieces = [(1024, 16, 0), (4000, 300, WRITE), (3000, 1, WRITE)]
    if packed:
        ring = [(at, size, 5, flags | AVAILABLE | (NEXT if i < 2 else 0)) for i, (at, size, flags) in enumerate(pieces)]
        ring += [(512, 48, 3, INDIRECT | AVAILABLE), (2048, 9, 1, WRITE | AVAILABLE), (2048, 9, 2, AVAILABLE)]
        table = [(at, size, 0, flags) for at, size, flags in pieces]
        available, used = b'', b''
    else:
        ring = [(at, size, flags | (NEXT if i < 2 else 0), i + 1) for i, (at, size, flags) in enumerate(pieces)]
        ring += [(512, 48, INDIRECT, 0), (2048, 9, WRITE, 0), (2048, 9, 0, 0)]
        table = ring[:3]
        available, used = struct.pack('<6H', 0, 4, 0, 3, 4, 5), bytes(4)
    memory = bytearray(1024)
    memory[: 16 * len(ring)] = b''.join(struct.pack('<QI2H', *entry) for entry in ring)
    memory[128 : 128 + len(available)] = available
    memory[256 : 256 + len(used)] = used
    memory[512:560] = b''.join(struct.pack('<QI2H', *entry) for entry in table)
    return bytes(memory)


def virtqueue_area(packed):
    """One request in flight."""
    if not packed:
        entries = [struct.pack('<B5xHQ', i == 3, 0, 7) for i in range(8)]
        return struct.pack('<Q4H', 0, 1, 8, 0, 0) + b''.join(entries)
    entries = [
        struct.pack('<BxHHHQHHIQ', i == 0, i + 1, 1, 2, 7, 6, WRITE | (NEXT if i == 0 else 0), 64, 2048) for i in range(8)
    ]
    return struct.pack('<QHHHH2H2B2x8x', 0, 1, 8, 2, 2, 0, 0, 1, 1) + b''.join(entries)


def from_virtqueues(directory):
    regions = struct.pack('<12H', 0, 0, 4096, 0, 4096, 4096, 4096, 4096, 9000, 9000, 100, 0)
    histories = [b'', bytes(6), b'\0\2' * 6, b'\0\0\0\2\2\3\4\x0c\0\2\3', b'\0\0\0\0\0\x12\x0a\2\3\x0c']
    for packed in (0, 1):
        memory, area = virtqueue_memory(packed), virtqueue_area(packed).ljust(256, b'\0')[:256]
        for flags in (2, 6, 14):
            setup = struct.pack('<BB3HI', packed | flags, 8, 0, 128, 256, 0) + regions
            tracked = bytes([setup[0] | 16]) + setup[1:]
            for history in histories:
                save(directory, 'virtqueue', setup + memory + history)
                save(directory, 'virtqueue', tracked + bytes(256) + memory + history)
                save(directory, 'virtqueue', tracked + area + memory + history)


# Where the front end of fuzz-vhost-user-session has its memory.
VHOST_GUEST = 0x10000
VIRTIO_1, PACKED, EVENT_IDX, INDIRECT_DESC = 1 << 32, 1 << 34, 1 << 29, 1 << 28


def vhost_start(features, size=8, base=0):
    return b'\x01' + struct.pack('<Q', features)[:5] + struct.pack('<HBHI', size, 0, 0, base)


def vhost_message(request, payload, fds=0):
    return struct.pack('<5B', 0, fds, request, 0, len(payload)) + payload


def vhost_write(at, data):
    return b'\x02' + struct.pack('<HB', at, len(data)) + data


def vhost_sessions():
    """A read by each kind of ring, and what may happen to its queue then."""
    pieces = [(0x1000, 16, 0), (0x2000, 512, 2), (0x3000, 1, 2)]
    header = vhost_write(0x1000, bytes(16))
    for features in (VIRTIO_1, VIRTIO_1 | EVENT_IDX, VIRTIO_1 | INDIRECT_DESC, VIRTIO_1 | INDIRECT_DESC | EVENT_IDX):
        chain = b''.join(
            struct.pack('<QIHH', VHOST_GUEST + at, count, flags | (i < 2), i + 1)
            for i, (at, count, flags) in enumerate(pieces)
        )
        if features & INDIRECT_DESC:
            header += vhost_write(0x4000, chain)
            chain = struct.pack('<QIHH', VHOST_GUEST + 0x4000, len(chain), 4, 0)
        yield header + vhost_write(0, chain) + vhost_write(128, struct.pack('<HHH', 0, 1, 0)) + vhost_start(
            features
        )
    chain = b''.join(
        struct.pack('<QIHH', VHOST_GUEST + at, count, 0, flags | (i < 2) | 0x80)
        for i, (at, count, flags) in enumerate(pieces)
    )
    yield header + vhost_write(0, chain) + vhost_start(VIRTIO_1 | PACKED, 8, 0x80008000)


def from_vhost_user(directory):
    region = struct.pack('<5Q', 0, VHOST_GUEST, 65536, 0x7F0000000000, 0)
    ends = [
        vhost_message(11, bytes(8)),
        vhost_message(24, struct.pack('<3I', 0, 60, 0)) + vhost_message(25, struct.pack('<3IB', 32, 1, 0, 0)),
        vhost_message(38, region) + vhost_message(37, region, 1),
        vhost_message(6, struct.pack('<2Q', 65536, 0), 1) + vhost_message(21, b'', 16) + b'\x07',
        vhost_message(32, struct.pack('<2Q2HI', 2 * 192 + 64, 0, 2, 8, 0), 8),
        vhost_message(39, bytes(8)) + vhost_message(3, b'') * 2,
        b'\x06\0\x10\x04',
    ]
    for start in vhost_sessions():
        for end in ends:
            save(directory, 'vhost-user-session', start + b'\x04\x05' + end + b'\x05')
    for request in range(1, 41):
        for size in (0, 8, 12, 16, 20, 24, 40, 72):
            save(directory, 'vhost-user', struct.pack('<B3I', size == 40, request, 1, size) + bytes(size))


def main():
    directory = pathlib.Path(sys.argv[1])
    from_virtqueues(directory)
    from_cases(directory)
    from_images(directory)
    from_luks(directory)
    from_bitmaps(directory)
    from_edits(directory)
    from_codecs(directory)
    from_fuse(directory)
    from_vhost_user(directory)


if __name__ == '__main__':
    main()
