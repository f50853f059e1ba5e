# SPDX-License-Identifier: Apache-2.0
"""Images that Granary and the reference make and write in turn: both read the same bytes from them and say the same about
them, and the reference's check finds them clean.

A seed draws an image from everything that the format offers and who does what. GRANARY_TEST_SEEDS=0-499 runs other seeds
than the few of a usual run."""

import json
import os
import random

import pytest

from lib import images
from lib.tools import libnbd, need, output, run
from lib.workload import Workload, read_all

KIB, MIB = 1 << 10, 1 << 20
FIRST, LAST = map(int, os.environ.get('GRANARY_TEST_SEEDS', '0-39').split('-'))


class Drawn:
    """An image in a directory, by seed."""

    def __init__(self, seed, directory):
        rng = self.rng = random.Random(seed)
        self.directory = directory
        self.path = directory / 'image.qcow2'
        self.v3 = rng.random() < 0.8
        self.cluster = rng.choice((512, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 64 * KIB, 256 * KIB, 2 * MIB))
        # Neither a whole number of clusters nor of anything else, now and then.
        self.size = rng.choice((2 * MIB, 3 * MIB, 5 * MIB + 512, 8 * MIB - 4 * KIB))
        self.refcount_bits = rng.choice((1, 2, 4, 8, 16, 32, 64)) if self.v3 else 16
        self.lazy = self.v3 and rng.random() < 0.2
        self.zstd = self.v3 and rng.random() < 0.4
        self.extended = self.v3 and self.cluster >= 16 * KIB and rng.random() < 0.4
        self.data_file = self.v3 and rng.random() < 0.2
        self.data_raw = self.data_file and rng.random() < 0.5
        self.backing = None if self.data_raw else rng.choice((None, None, 'raw', 'qcow2'))
        self.preallocation = rng.choice(('off', 'off', 'off', 'metadata', 'falloc', 'full'))
        if self.backing and not self.extended:
            self.preallocation = 'off'
        self.shadow = bytes(self.size)
        self.fresh = True
        self.snapshots = {}  # contents by name

    def __str__(self):
        hidden = ('rng', 'directory', 'path', 'shadow', 'fresh', 'snapshots')
        return ' '.join(f'{name}={value}' for name, value in vars(self).items() if name not in hidden)

    @property
    def may_have_snapshots(self):
        return not self.data_file and self.refcount_bits > 1 + len(self.snapshots).bit_length()

    def choose_snapshot(self):
        return self.rng.choice(sorted(self.snapshots))

    def make_backing(self):
        if not self.backing:
            return
        base = self.directory / 'base'
        size = self.rng.choice((self.size, self.size // 2 // 512 * 512, self.size + MIB))
        content = images.fill_raw(base, self.rng, size)
        if self.backing == 'qcow2':
            base.rename(self.directory / 'plain')
            run('qemu-img', 'convert', '-O', 'qcow2', '-c', self.directory / 'plain', base)
        self.shadow = content[: self.size] + bytes(max(0, self.size - size))


class Reference:
    """What the reference does with the image."""

    def __init__(self, drawn, daemon):
        self.drawn = drawn

    def create(self):
        drawn = self.drawn
        options = {
            'compat': '1.1' if drawn.v3 else '0.10',
            'cluster_size': drawn.cluster,
            'preallocation': drawn.preallocation,
            'lazy_refcounts': 'on' if drawn.lazy else 'off',
        }
        if drawn.v3:
            options['refcount_bits'] = drawn.refcount_bits
            options['compression_type'] = 'zstd' if drawn.zstd else 'zlib'
        if drawn.extended:
            options['extended_l2'] = 'on'
        if drawn.data_file:
            options['data_file'] = 'image.data'
            options['data_file_raw'] = 'on' if drawn.data_raw else 'off'
        backing = ['-b', 'base', '-F', drawn.backing] if drawn.backing else []
        run(
            'qemu-img',
            'create',
            '-q',
            '-f',
            'qcow2',
            '-o',
            ','.join(f'{key}={value}' for key, value in options.items()),
            *backing,
            drawn.path,
            drawn.size,
            cwd=drawn.directory,
        )

    def write(self):
        """Writes, zeroes and discards through qemu-io, one after the other."""
        drawn, commands, shadow = self.drawn, [], bytearray(self.drawn.shadow)
        pieces = [(*extent, 'write') for extent in images.extents(drawn.rng, drawn.size, 12)]
        # It compresses into clusters that nobody has written yet, and refuses all others.
        if drawn.fresh and not drawn.data_file and drawn.preallocation == 'off':
            some = drawn.rng.sample(range(drawn.size // drawn.cluster), min(8, drawn.size // drawn.cluster))
            pieces = [(at * drawn.cluster, drawn.cluster, 0x33, 'write -c') for at in some] + pieces
        for offset, length, value, kind in pieces:
            if not value:
                kind = drawn.rng.choice(('write -z', 'write -z -u'))
            commands.append(f'{kind} -P {value} {offset} {length}' if value else f'{kind} {offset} {length}')
            shadow[offset : offset + length] = bytes([value or 0]) * length
        images.qemu_io(drawn.path, commands)
        drawn.shadow, drawn.fresh = bytes(shadow), False

    def snapshot(self, action, name):
        run('qemu-img', 'snapshot', {'make': '-c', 'apply': '-a', 'delete': '-d'}[action], name, self.drawn.path)

    def read(self):
        return images.to_raw(self.drawn.path)

    def read_snapshot(self, name):
        raw = self.drawn.directory / 'snapshot.raw'
        run('qemu-img', 'convert', '-O', 'raw', '-l', f'snapshot.name={name}', self.drawn.path, raw)
        return raw.read_bytes()

    def info(self):
        return json.loads(output('qemu-img', 'info', '--output=json', self.drawn.path, cwd=self.drawn.directory))


class Granary:
    """What the daemon under test does with the image."""

    def __init__(self, drawn, daemon):
        self.drawn, self.daemon = drawn, daemon

    def create(self):
        drawn, served = self.drawn, self.daemon()
        options = {
            'driver': 'qcow2',
            'size': drawn.size,
            'version': 'v3' if drawn.v3 else 'v2',
            'cluster-size': drawn.cluster,
            'preallocation': drawn.preallocation,
            'lazy-refcounts': drawn.lazy,
            'extended-l2': drawn.extended,
        }
        if drawn.v3:
            options['refcount-bits'] = drawn.refcount_bits
            options['compression-type'] = 'zstd' if drawn.zstd else 'zlib'
        if drawn.backing:
            options |= {'backing-file': 'base', 'backing-fmt': drawn.backing}
        files = {'file': drawn.path}
        if drawn.data_file:
            files['data-file'] = drawn.directory / 'image.data'
            options['data-file-raw'] = drawn.data_raw
        for node, path in files.items():
            file = {'driver': 'file', 'filename': str(path)}
            served.qmp.run_job(f'c-{node}', 'blockdev-create', options={**file, 'size': 0})
            served.blockdev_add(node_name=node, **file)
        served.qmp.run_job('create', 'blockdev-create', options=options | {node: node for node in files})
        served.stop()

    def serve(self, **options):
        drawn = self.drawn
        served = self.daemon(nbd=True)
        file = {'driver': 'file', 'filename': str(drawn.path)}
        served.blockdev_add(driver='qcow2', node_name='q', file=file, **options)
        served.export('q', writable=not options.get('read_only', False))
        handle = libnbd().NBD()
        handle.connect_uri(served.uri('q'))
        return served, handle

    def write(self):
        drawn = self.drawn
        served, handle = self.serve(discard=drawn.rng.choice(('ignore', 'unmap')))
        work = Workload(handle, drawn.shadow, drawn.rng, grain=drawn.rng.choice((1, 512, 4096)))
        work.run(rounds=6)
        handle.shutdown()
        served.stop()
        drawn.shadow, drawn.fresh = bytes(work.shadow), False

    def snapshot(self, action, name):
        served = self.daemon()
        file = {'driver': 'file', 'filename': str(self.drawn.path)}
        served.blockdev_add(driver='qcow2', node_name='q', file=file)
        command = {
            'make': 'blockdev-snapshot-internal-sync',
            'apply': 'x-blockdev-snapshot-apply-internal',
            'delete': 'blockdev-snapshot-delete-internal-sync',
        }[action]
        served.cmd(command, device='q', name=name)
        served.stop()

    def read(self):
        served, handle = self.serve(read_only=True)
        content = read_all(handle)
        handle.shutdown()
        served.stop()
        return content

    def info(self):
        served, handle = self.serve(read_only=True)
        nodes = served.cmd('query-named-block-nodes', flat=True)
        handle.shutdown()
        served.stop()
        return next(node['image'] for node in nodes if node['node-name'] == 'q')


def change_snapshots(drawn, sides):
    """Makes, applies or deletes one, now and then; returns what was done."""
    side, name = drawn.rng.choice(sides), f's{drawn.rng.randrange(1 << 30)}'
    action = drawn.rng.choice(('make', 'make', 'apply', 'delete', 'none'))
    if action == 'none' or (action == 'make' and not drawn.may_have_snapshots):
        return []
    if action != 'make':
        if not drawn.snapshots:
            return []
        name = drawn.choose_snapshot()
    side.snapshot(action, name)
    if action == 'make':
        drawn.snapshots[name] = drawn.shadow
    elif action == 'apply':
        drawn.shadow = drawn.snapshots[name]
    else:
        del drawn.snapshots[name]
    return [f'{action} {name} by {type(side).__name__}']


def compare_contents(drawn, reader, done):
    got = reader.read()
    if got == drawn.shadow:
        return
    at = next((i for i, (a, b) in enumerate(zip(got, drawn.shadow)) if a != b), min(len(got), len(drawn.shadow)))
    pytest.fail(f'{type(reader).__name__} reads something else at {at} of {len(got)} after {done}; {drawn}')


def compare_info(drawn, ours, reference):
    """All that is said of the image, but for what moves (bytes in use) and the names as given."""
    moving = {'actual-size', 'filename', 'full-backing-filename', 'children', 'backing-image', 'dirty-flag', 'limits'}
    mine, theirs = (
        {key: value for key, value in side.items() if key not in moving} for side in (ours.info(), reference.info())
    )
    assert mine == theirs, str(drawn)


@pytest.mark.parametrize('seed', range(FIRST, LAST + 1))
def test_both_in_turn(seed, daemon, tmp):
    need('qemu-img', 'qemu-io')
    drawn = Drawn(seed, tmp)
    ours, reference = Granary(drawn, daemon), Reference(drawn, daemon)
    drawn.make_backing()
    maker = drawn.rng.choice((ours, reference))
    maker.create()
    done = [f'create by {type(maker).__name__}']
    for _ in range(drawn.rng.randrange(2, 5)):
        writer = drawn.rng.choice((ours, reference))
        writer.write()
        done.append(f'write by {type(writer).__name__}')
        done += change_snapshots(drawn, (ours, reference))
        images.check(drawn.path)
        for reader in (reference, ours):
            compare_contents(drawn, reader, done)
    for name, content in drawn.snapshots.items():
        assert reference.read_snapshot(name) == content, f'snapshot {name} after {done}; {drawn}'
    compare_info(drawn, ours, reference)
