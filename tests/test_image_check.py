# SPDX-License-Identifier: Apache-2.0
"""The check of images: the counts of the reference's check, over images that were damaged by seed; and repairs, after
which the reference finds nothing and the contents are what they were."""

import json
import random
import shutil
import subprocess

import pytest

from lib import images
from lib.qcow2damage import OTHERS, REPAIRABLE, Damage
from lib.qmp import QmpError
from lib.tools import libnbd, need, run

KINDS = {
    'plain': 'cluster_size=65536',
    'v2': 'compat=0.10,cluster_size=4096',
    'tiny': 'cluster_size=512',
    'narrow': 'cluster_size=4096,refcount_bits=2',
    'single': 'cluster_size=2048,refcount_bits=1',
    'wide': 'cluster_size=1024,refcount_bits=64',
    'extended': 'extended_l2=on,cluster_size=16384',
    'compressed': 'cluster_size=4096',
    'snapshots': 'cluster_size=4096',
    'snapshots-wide': 'cluster_size=512,refcount_bits=32',
}
SEEDS = range(14)  # of each kind
COUNTS = (
    'leaks',
    'corruptions',
    'check-errors',
    'total-clusters',
    'allocated-clusters',
    'fragmented-clusters',
    'compressed-clusters',
    'image-end-offset',
)


def make(kind, directory, rng):
    path, source = directory / 'image.qcow2', directory / 'source'
    images.fill_raw(source, rng, 1 << 20)
    if kind == 'compressed':
        run('qemu-img', 'convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', KINDS[kind], source, path)
    else:
        run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-o', KINDS[kind], source, path)
    if kind.startswith('snapshots'):
        for name in 'ab':
            run('qemu-img', 'snapshot', '-c', name, path)
            images.write_some(path, rng, 1 << 20)
    elif kind != 'compressed':
        images.write_some(path, rng, 1 << 20)
    return path


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    """One image of each kind, made once."""
    need('qemu-img', 'qemu-io')
    made = {}

    def get(kind):
        if kind not in made:
            directory = tmp_path_factory.mktemp(kind)
            made[kind] = make(kind, directory, random.Random(kind))
        return made[kind]

    return get


def reference(path, *arguments):
    """What qemu-img says: exit status and counts, or None where it gives up."""
    done = subprocess.run(
        ['qemu-img', 'check', '--output=json', '-f', 'qcow2', *arguments, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    try:
        return done.returncode, json.loads(done.stdout)
    except json.JSONDecodeError:
        return done.returncode, None


def ours(served, path, fix='none'):
    image = {'driver': 'qcow2', 'file': {'driver': 'file', 'filename': str(path)}}
    return served.cmd('x-blockdev-check', image=image, fix=fix)


def damage(path, rng, kinds):
    """One to three damages; their names."""
    one = Damage(path, rng)
    done = []
    while not done:
        done = [name for name in rng.choices(kinds, k=rng.choice((1, 1, 2, 3))) if getattr(one, name)()]
    one.save()
    return done


def contents(path):
    """What the reference reads, None where it cannot."""
    done = subprocess.run(
        ['qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', str(path), f'{path}.raw'],
        stderr=subprocess.PIPE,
        check=False,
    )
    return (path.parent / f'{path.name}.raw').read_bytes() if done.returncode == 0 else None


@pytest.mark.parametrize('kind', KINDS)
def test_counts_are_the_reference_s(kind, originals, daemon, tmp):
    served = daemon()
    path = tmp / 'image.qcow2'
    shutil.copy(originals(kind), path)
    assert {k: v for k, v in reference(path)[1].items() if k in COUNTS} == {
        k: v for k, v in ours(served, path).items() if k in COUNTS
    }
    for seed in SEEDS:
        shutil.copy(originals(kind), path)
        names = damage(path, random.Random(f'{kind} {seed}'), REPAIRABLE + OTHERS)
        status, theirs = reference(path)
        try:
            mine = ours(served, path)
        except QmpError as error:
            assert theirs is None, f'seed {seed} {names}: {error.desc}, the reference says {theirs}'
            continue
        assert theirs is not None, f'seed {seed} {names}: {mine}, the reference gives up with {status}'
        for key in COUNTS:
            assert mine.get(key, 0) == theirs.get(key, 0), f'seed {seed} {names} {key}:\n{mine}\n{theirs}'


@pytest.mark.parametrize('kind', KINDS)
def test_repair(kind, originals, daemon, tmp):
    served = daemon()
    path = tmp / 'image.qcow2'
    for seed in SEEDS:
        shutil.copy(originals(kind), path)
        names = damage(path, random.Random(f'repair {kind} {seed}'), REPAIRABLE)
        before, found = contents(path), ours(served, path)
        mine = ours(served, path, fix='all')
        where = f'seed {seed} {names}:\n{found}\n{mine}'
        # One correction may be enough for several problems: a flag is right again once its refcount is.
        assert bool({'corruptions', 'leaks'} & set(found)) == bool(
            {'corruptions-fixed', 'leaks-fixed'} & set(mine)
        ), where
        assert not mine['check-errors'] and 'corruptions' not in mine and 'leaks' not in mine, where
        assert reference(path)[0] == 0, where
        assert contents(path) == before, where


@pytest.mark.parametrize('kind', ['snapshots', 'snapshots-wide'])
def test_incomplete_snapshots(kind, originals, daemon, tmp, rng):
    """Entries without what version 3 demands are written again, and nothing else about the snapshots changes."""
    path = tmp / 'image.qcow2'
    shutil.copy(originals(kind), path)
    wanted = snapshots(path)
    one = Damage(path, rng)
    assert one.snapshot_incomplete() and one.leak()
    one.save()
    assert reference(path)[1]['corruptions'] == 2
    served = daemon()
    assert ours(served, path, fix='leaks')['corruptions'] == 2
    mine = ours(served, path, fix='all')
    assert 'corruptions' not in mine and mine['corruptions-fixed'] == 2
    assert reference(path)[0] == 0
    assert snapshots(path) == wanted


def snapshots(path):
    """What is known of each one, and its contents."""
    found = []
    for about in images.info(path)['snapshots']:
        run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', '-l', about['name'], path, f'{path}.raw')
        about.pop('icount', None)  # was dropped with the rest
        found.append((about, (path.parent / f'{path.name}.raw').read_bytes()))
    return found


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('fix', ['leaks', 'all'])
def test_repair_makes_nothing_worse(kind, fix, originals, daemon, tmp):
    """Damage of which some cannot be put right: what could be read is what it was, and no problem is new."""
    served = daemon()
    path = tmp / 'image.qcow2'
    for seed in SEEDS[:6]:
        shutil.copy(originals(kind), path)
        names = damage(path, random.Random(f'worse {kind} {seed}'), REPAIRABLE + OTHERS)
        before, counts = contents(path), reference(path)[1]
        try:
            mine = ours(served, path, fix=fix)
        except QmpError as error:
            assert error.desc
            mine = {}
        after = reference(path)[1]
        where = f'seed {seed} {names}:\n{counts}\n{mine}\n{after}'
        assert contents(path) == before, where
        if counts is None:
            continue
        for key in ('corruptions', 'check-errors') + (('leaks',) if fix == 'leaks' else ()):
            assert after.get(key, 0) <= counts.get(key, 0), where


def test_node_in_use(daemon, tmp, rng):
    """A node with an export is checked between its requests, and repaired under a client that goes on."""
    nbd = libnbd()
    path = tmp / 'image.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', path, '8M')
    images.qemu_io(path, ['write -P 1 0 1M'])
    one = Damage(path, rng)
    one.leak()
    one.l2_copied()
    one.save()
    served = daemon(nbd=True)
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)})
    served.export('q', writable=True)
    handle = served.connect('q')
    shadow = bytearray(b'\1' * (1 << 20) + bytes(7 << 20))
    for turn, fix in enumerate(('none', 'leaks', 'all', 'none')):
        pending = []
        for _ in range(50):
            at, data = rng.randrange(2000) * 4096, rng.randbytes(4096)
            if not any(other == at for other, _ in pending):
                pending.append((at, data))
                shadow[at : at + 4096] = data
        cookies = [handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at) for at, data in pending]
        found = served.cmd('x-blockdev-check', node_name='q', fix=fix)
        for cookie in cookies:
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
        assert found['check-errors'] == 0
        assert ('corruptions' in found) == (turn < 1), found
        assert handle.pread(len(shadow), 0) == shadow
    assert served.qmp.error('x-blockdev-check', node_name='nowhere').desc == "Cannot find node 'nowhere'"
    handle.shutdown()
    served.stop()
    images.check(path)


@pytest.mark.sanitize
def test_leaks_behind_the_end_of_the_file(daemon, tmp, rng):
    """A power cut may leave a file that is shorter than its refcounts say. Growing again it would show the leaks."""
    need('qemu-img', 'qemu-io')
    path = tmp / 'image.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', KINDS['plain'], path, '1M')
    images.write_some(path, rng, 1 << 20)
    content = contents(path)
    one = Damage(path, rng)
    last = -(-len(one.data) // one.cluster)
    for cluster in (last, last + 7, one.per_block - 1):
        one.refcount(cluster, 1)
    one.save()
    served = daemon()
    assert ours(served, path).get('leaks', 0) == 0  # as the reference counts
    assert ours(served, path, 'leaks')['leaks-fixed'] == 3
    with open(path, 'r+b') as file:
        file.truncate(one.per_block * one.cluster)
    images.check(path)
    assert contents(path) == content
