# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps kept in qcow2 images: both programs understand what the other has stored, and a killed daemon's bitmaps
show every block that was written."""

import json
import shutil
import struct

import pytest

from lib import images
from lib.crash import wait_unlocked
from lib.differential import reference
from lib.tools import need, output, run

SIZE = 64 << 20
JOURNAL = 1 << 55
AT_AUTOCLEAR = 88
SHAPES = {
    'plain': ('cluster_size=65536', '65536'),
    'small': ('cluster_size=512', '512'),
    'large': ('cluster_size=2M', '4096'),
    'fine': ('cluster_size=4096', '512'),
}


@pytest.fixture(params=SHAPES)
def image(request, tmp):
    """An image with the bitmaps `a` and, disabled, `d`, made by qemu-img."""
    need('qemu-img', 'qemu-io')
    options, granularity = SHAPES[request.param]
    path = tmp / 'image.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, SIZE)
    run('qemu-img', 'bitmap', '--add', '-g', granularity, path, 'a')
    images.qemu_io(path, ['write 1M 100k', 'write 30M 1k'])
    run('qemu-img', 'bitmap', '--add', '--disable', '-g', '65536', path, 'd')
    run('qemu-img', 'bitmap', '--merge', 'a', path, 'd')
    return path


def start(daemon, path, **options):
    one = daemon(nbd=True)
    open_image(one, path, **options)
    return one


def open_image(one, path, **options):
    one.blockdev_add(
        driver='qcow2', node_name='n', discard='unmap', file={'driver': 'file', 'filename': str(path)}, **options
    )


def bitmaps(one):
    return {bitmap['name']: bitmap for bitmap in one.node('n').get('dirty-bitmaps', [])}


def sums(one, names='ad'):
    return {
        name: one.cmd('x-debug-block-dirty-bitmap-sha256', node='n', name=name)['sha256'] for name in names
    }


def stored(path):
    """The bitmaps by name as qemu-img shows them."""
    return {b['name']: set(b['flags']) for b in images.info(path)['format-specific']['data'].get('bitmaps', [])}


@pytest.fixture
def seen_by_reference(daemon):
    """sums() by the reference's daemon, and whether each bitmap is consistent."""
    peer = reference()

    def look(path):
        one = daemon(**peer.options())
        open_image(one, path, read_only=True)
        found = bitmaps(one)
        sound = {name for name, b in found.items() if not b.get('inconsistent')}
        seen = sound, sums(one, sorted(sound))
        one.kill()
        return seen

    return look


def change(one, path, rng):
    one.cmd('block-export-add', type='nbd', id='w', node_name='n', name='w', writable=True)
    commands = []
    for _ in range(40):
        length = rng.choice([512, 4096, 70000 // 512 * 512])
        command = rng.choice(['write', 'write -z', 'discard'])
        commands += ['-c', f'{command} {rng.randrange((SIZE - length) // 512) * 512} {length}']
    run('qemu-io', '-f', 'raw', *commands, one.uri('w'))
    one.unexport('w', mode='hard')


@pytest.mark.sanitize
def test_both_programs_see_the_same(daemon, image, seen_by_reference, rng):
    before = seen_by_reference(image)[1]
    one = start(daemon, image)
    assert sums(one) == before
    assert not bitmaps(one)['d']['recording'] and bitmaps(one)['a']['recording']
    change(one, image, rng)
    after = sums(one)
    assert after['d'] == before['d'] and after['a'] != before['a']
    one.cmd('blockdev-del', node_name='n')
    assert stored(image) == {'a': {'auto'}, 'd': set()}
    assert seen_by_reference(image) == ({'a', 'd'}, after)
    images.check(image)
    run('qemu-img', 'bitmap', '--remove', image, 'd')
    images.qemu_io(image, ['write 50M 64k'])
    expected = seen_by_reference(image)[1]
    open_image(one, image)
    assert set(bitmaps(one)) == {'a'}
    assert sums(one, 'a') == expected
    one.quit()
    images.check(image)


def test_commands(daemon, image, seen_by_reference, rng):
    one = start(daemon, image)
    one.cmd('block-dirty-bitmap-add', node='n', name='new', persistent=True, granularity=4096)
    one.cmd('block-dirty-bitmap-add', node='n', name='gone', persistent=True)
    one.cmd('block-dirty-bitmap-add', node='n', name='passing')
    one.cmd('block-dirty-bitmap-remove', node='n', name='gone')
    one.cmd('block-dirty-bitmap-remove', node='n', name='d')
    one.cmd('block-dirty-bitmap-merge', node='n', target='new', bitmaps=['a'])
    one.cmd('block-dirty-bitmap-clear', node='n', name='a')
    one.cmd('block-dirty-bitmap-disable', node='n', name='new')
    change(one, image, rng)
    one.cmd('block_resize', node_name='n', size=SIZE * 3)
    expected = sums(one, ['a', 'new'])
    one.cmd('blockdev-del', node_name='n')
    assert stored(image) == {'a': {'auto'}, 'new': set()}
    assert seen_by_reference(image) == ({'a', 'new'}, expected)
    images.check(image)
    open_image(one, image)
    for name in ('a', 'new'):
        one.cmd('block-dirty-bitmap-remove', node='n', name=name)
    one.quit()
    assert stored(image) == {}
    images.check(image)


def kill_under_load(one, rng):
    """Writes through NBD until the daemon is killed in the middle; the ranges of writes that were answered."""
    one.cmd('block-export-add', type='nbd', id='w', node_name='n', name='w', writable=True)
    handle = one.connect('w')
    written = []

    def write(offset, length):
        def answered(error):
            assert not error
            written.append((offset, length))
            return 1

        handle.aio_pwrite(rng.randbytes(length), offset, answered)

    for i in range(60):
        length = rng.choice([512, 4096, 65536])
        write(rng.randrange((SIZE // 4 - length) // 512) * 512, length)
        if i % 20 == 19:
            handle.aio_flush()
        while handle.aio_in_flight() > 8:
            handle.poll(-1)
    one.kill()
    wait_unlocked(one.directory)
    return written


def dirty(one, name):
    """The dirty ranges as a client of NBD sees them."""
    one.cmd('block-export-add', type='nbd', id='r', node_name='n', name='r', bitmaps=[name])
    extents = json.loads(output('nbdinfo', f'--map=qemu:dirty-bitmap:{name}', '--json', one.uri('r')))
    one.unexport('r', mode='hard')
    return [(e['offset'], e['offset'] + e['length']) for e in extents if e['type'] == 1]


def covered(ranges, offset, length):
    return any(start <= offset and offset + length <= end for start, end in ranges)


def test_killed(daemon, image, seen_by_reference, rng, tmp):
    """Twice in a row; the reference sees bitmaps in use, and its repair does no harm."""
    need('nbdinfo')
    written, before = [], seen_by_reference(image)[1]
    for _ in range(2):
        written += kill_under_load(start(daemon, image), rng)
        assert seen_by_reference(image) == (set(), {}), 'nobody else trusts them'
        assert all('in-use' in flags for flags in stored(image).values())
        shutil.copy(image, tmp / 'copy.qcow2')
        images.check(image, leaks_allowed=True)
        reader = start(daemon, image, read_only=True)
        ranges = dirty(reader, 'a')
        assert all(covered(ranges, *extent) for extent in written)
        assert covered(ranges, 1 << 20, 100 << 10) and covered(ranges, 30 << 20, 1024), 'what was set before'
        assert sum(end - start for start, end in ranges) < SIZE // 2, 'not simply everything'
        assert sums(reader, 'd') == {'d': before['d']}, 'writes do not change a disabled bitmap'
        reader.quit()
        assert (tmp / 'copy.qcow2').read_bytes() == image.read_bytes()
    one = start(daemon, image)
    after = sums(one)
    one.quit()
    assert seen_by_reference(image) == ({'a', 'd'}, after)
    images.check(image, leaks_allowed=True)  # of the killed daemons, but no journal
    run('qemu-img', 'check', '-q', '-r', 'leaks', image)
    images.check(image)


@pytest.mark.parametrize('how', ['write', 'repair', 'bitmap'])
def test_others_end_the_journal(daemon, image, rng, how, tmp):
    """A program that does not know the journal and changes the image: the bitmaps are inconsistent, not wrong."""
    kill_under_load(start(daemon, image), rng)
    assert struct.unpack_from('>Q', image.read_bytes(), AT_AUTOCLEAR)[0] & JOURNAL
    if how == 'write':
        images.qemu_io(image, ['write 40M 64k'])
    elif how == 'repair':
        run('qemu-img', 'check', '-q', '-r', 'all', image)
    else:
        run('qemu-img', 'bitmap', '--add', image, 'other')
    assert not struct.unpack_from('>Q', image.read_bytes(), AT_AUTOCLEAR)[0] & JOURNAL
    one = start(daemon, image)
    assert bitmaps(one)['a']['inconsistent'] and bitmaps(one)['d']['inconsistent']
    for name in 'ad':
        one.cmd('block-dirty-bitmap-remove', node='n', name=name)
    one.quit()
    assert stored(image) == ({'other': {'auto'}} if how == 'bitmap' else {})
    run('qemu-img', 'check', '-q', '-r', 'leaks', image)
    images.check(image)


def test_little_room_in_the_header(daemon, tmp, rng):
    """Names of features and of the backing file make way for the extensions."""
    need('qemu-img', 'qemu-io')
    run('qemu-img', 'create', '-q', '-f', 'raw', tmp / 'base', SIZE)
    for options in ('cluster_size=512', 'cluster_size=1024', 'cluster_size=65536'):
        path = tmp / f'{options}.qcow2'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base', '-o', options, path)
        one = start(daemon, path)
        one.cmd('block-dirty-bitmap-add', node='n', name='x', persistent=True)
        change(one, path, rng)
        expected = bitmaps(one)['x']['count']
        one.kill()
        wait_unlocked(one.directory)
        assert stored(path) == {'x': {'in-use', 'auto'}}
        one = start(daemon, path)
        assert bitmaps(one)['x']['count'] >= expected > 0
        one.quit()
        assert stored(path) == {'x': {'auto'}}
        assert 'backing file: base' in output('qemu-img', 'info', path)
        images.check(path, leaks_allowed=True)
