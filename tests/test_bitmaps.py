# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps as backup programs use them: what was written is marked, and clients of an export see it."""

import json
import threading

import pytest

from lib import images
from lib.differential import reference
from lib.tools import libnbd, need, output, run

SIZE = 16 << 20
GRANULARITY = 4096
WRITES = 60


@pytest.fixture
def served(daemon, tmp):
    """An image with the bitmap `b`, exported for writing as `w`."""
    need('qemu-img', 'qemu-io')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / 'image.qcow2', SIZE)
    one = daemon(
        '--object',
        'iothread,id=t0',
        '--object',
        'iothread,id=t1',
        '--blockdev',
        f'file,node-name=f,filename={tmp}/image.qcow2',
        '--blockdev',
        'qcow2,node-name=n,file=f,discard=unmap',
        nbd=True,
    )
    one.cmd('block-dirty-bitmap-add', node='n', name='b', granularity=GRANULARITY)
    one.cmd('block-export-add', type='nbd', id='w', node_name='n', name='w', writable=True)
    return one


def bitmaps(served, name='n'):
    """The bitmaps of a node by name."""
    return {bitmap['name']: bitmap for bitmap in served.node(name).get('dirty-bitmaps', [])}


def granules(ranges):
    return {i for offset, length in ranges for i in range(offset // 4096, -(-(offset + length) // 4096))}


def write_randomly(served, rng, count=WRITES):
    """Writes, zeroes and discards by qemu-io; the ranges."""
    ranges = []
    commands = []
    for _ in range(count):
        length = rng.choice([1, 512, 4096, 70000])
        offset = rng.randrange(SIZE - length)
        command = rng.choice(['write', 'write -P 7', 'write -z', 'write -z -u', 'discard'])
        if 'z' in command or command == 'discard':
            offset, length = offset // 512 * 512, -(-length // 512) * 512
        ranges.append((offset, length))
        commands += ['-c', f'{command} {offset} {length}']
    run('qemu-io', '-f', 'raw', *commands, served.uri('w'))
    return ranges


def dirty_by_nbdinfo(served, export, name):
    """The dirty granules as nbdinfo shows them."""
    extents = json.loads(output('nbdinfo', f'--map=qemu:dirty-bitmap:{name}', '--json', served.uri(export)))
    assert sum(extent['length'] for extent in extents) == SIZE
    return granules((extent['offset'], extent['length']) for extent in extents if extent['type'] == 1)


def dirty_by_qemu_img(served, export, name):
    """The same by qemu-img, which shows dirty parts as holes."""
    options = (
        f'driver=nbd,server.type=unix,server.path={served.nbd_path},export={export},'
        f'x-dirty-bitmap=qemu:dirty-bitmap:{name}'
    )
    extents = json.loads(output('qemu-img', 'map', '--output=json', '--image-opts', options))
    return granules((extent['start'], extent['length']) for extent in extents if not extent['data'])


@pytest.mark.sanitize
def test_clients_see_what_was_written(served, rng):
    need('nbdinfo')
    ranges = write_randomly(served, rng)
    expected = granules(ranges)
    assert bitmaps(served)['b']['count'] == len(expected) * GRANULARITY
    served.cmd('block-dirty-bitmap-disable', node='n', name='b')
    served.cmd('block-export-add', type='nbd', id='r', node_name='n', name='r', bitmaps=['b'])
    assert dirty_by_nbdinfo(served, 'r', 'b') == expected
    assert dirty_by_qemu_img(served, 'r', 'b') == expected
    assert 'qemu:dirty-bitmap:b' in output('nbdinfo', served.uri('r'))
    write_randomly(served, rng)
    assert dirty_by_nbdinfo(served, 'r', 'b') == expected, 'a disabled bitmap stays as it is'


def test_an_incremental_backup_has_every_change(served, tmp, rng):
    """The full copy and what the bitmap names since make the present contents."""
    write_randomly(served, rng)
    run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', served.uri('w'), tmp / 'backup.img')
    served.cmd('block-dirty-bitmap-clear', node='n', name='b')
    write_randomly(served, rng, 200)
    served.cmd(
        'transaction',
        actions=[
            {'type': 'block-dirty-bitmap-add', 'data': {'node': 'n', 'name': 'next'}},
            {'type': 'block-dirty-bitmap-disable', 'data': {'node': 'n', 'name': 'b'}},
        ],
    )
    served.cmd('block-export-add', type='nbd', id='r', node_name='n', name='r', bitmaps=['b'])
    client = served.connect('r')
    with open(tmp / 'backup.img', 'r+b') as backup:
        for granule in sorted(dirty_by_nbdinfo(served, 'r', 'b')):
            backup.seek(granule * GRANULARITY)
            backup.write(client.pread(GRANULARITY, granule * GRANULARITY))
    client.shutdown()
    run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', served.uri('w'), tmp / 'now.img')
    assert (tmp / 'backup.img').read_bytes() == (tmp / 'now.img').read_bytes()
    assert bitmaps(served)['next']['count'] == 0


@pytest.mark.sanitize
def test_marks_from_several_loops(served, rng):
    """Connections on two threads write side by side while bitmaps come, are merged and go."""
    served.cmd('blockdev-add', driver='null-co', node_name='m', size=SIZE)
    served.cmd('block-dirty-bitmap-add', node='m', name='b', granularity=GRANULARITY)
    served.cmd(
        'block-export-add',
        type='nbd',
        id='many',
        node_name='m',
        name='many',
        writable=True,
        iothread=['t0', 't1'],
    )

    def write(offsets):
        client = served.connect('many')
        for offset in offsets:
            client.pwrite(b'x' * 512, offset)
        client.shutdown()

    offsets = [[rng.randrange(SIZE // 512) * 512 for _ in range(300)] for _ in range(2)]
    threads = [threading.Thread(target=write, args=(half,)) for half in offsets]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        served.cmd('block-dirty-bitmap-add', node='m', name='x', granularity=512)
        served.cmd('block-dirty-bitmap-merge', node='m', target='x', bitmaps=['b'])
        served.cmd('block-dirty-bitmap-remove', node='m', name='x')
    for thread in threads:
        thread.join()
    expected = granules((offset, 512) for offset in offsets[0] + offsets[1])
    assert bitmaps(served, 'm')['b']['count'] == len(expected) * GRANULARITY


def test_an_export_keeps_its_bitmaps(served):
    """Busy until the export is gone, also on another node, which stays."""
    served.cmd('blockdev-add', driver='null-co', node_name='m', size=1 << 20)
    served.cmd('block-dirty-bitmap-add', node='m', name='other')
    served.cmd(
        'block-export-add',
        type='nbd',
        id='r',
        node_name='n',
        name='r',
        writable=True,
        bitmaps=['b', {'node': 'm', 'name': 'other'}],
    )
    assert bitmaps(served)['b']['busy']
    assert 'currently in use' in served.qmp.error('block-dirty-bitmap-remove', node='n', name='b').desc
    assert 'Node m is in use' in str(served.qmp.error('blockdev-del', node_name='m'))
    write = ['-c', f'write {SIZE - 512} 512']
    run('qemu-io', '-f', 'raw', *write, served.uri('r'))
    assert dirty_by_nbdinfo(served, 'r', 'b') == {SIZE // GRANULARITY - 1}
    assert dirty_by_nbdinfo(served, 'r', 'other') == set()  # nothing lies behind its end
    served.unexport('r', mode='hard')
    assert not bitmaps(served)['b']['busy']
    served.cmd('blockdev-del', node_name='m')
    served.cmd('block-dirty-bitmap-remove', node='n', name='b')
    assert bitmaps(served) == {}


def test_many_bitmaps_of_one_export(served, rng):
    names = [f'b{i}' for i in range(62)]
    for name in names:
        served.cmd('block-dirty-bitmap-add', node='n', name=name, granularity=512 << rng.randrange(8))
    error = served.qmp.error(
        'block-export-add', type='nbd', id='r', node_name='n', name='r', writable=True, bitmaps=names + ['b']
    )
    assert '63 bitmaps, more than 62' in str(error)
    served.cmd(
        'block-export-add', type='nbd', id='r', node_name='n', name='r', writable=True, bitmaps=names
    )
    write_randomly(served, rng)
    nbd = libnbd()
    client = nbd.NBD()
    for name in names:
        client.add_meta_context(f'qemu:dirty-bitmap:{name}')
    client.connect_uri(served.uri('r'))
    dirty = dict.fromkeys(names, 0)
    offset = 0
    while offset < SIZE:  # each answer may stop early
        ends = []

        def extents(context, at, entries, _):
            lengths, flags = entries[::2], entries[1::2]
            ends.append((context, at, list(zip(lengths, flags))))

        client.block_status(SIZE - offset, offset, extents)
        reach = min(sum(length for length, _ in pieces) for _, _, pieces in ends)
        assert reach > 0 and len(ends) == len(names)
        for context, _, pieces in ends:
            left = reach
            for length, flag in pieces:
                dirty[context.rpartition(':')[2]] += min(length, left) if flag else 0
                left -= min(length, left)
        offset += reach
    client.shutdown()
    shown = bitmaps(served)
    assert dirty == {name: shown[name]['count'] for name in names}


def test_the_file_below_has_bitmaps_of_its_own(served, tmp, rng):
    """They grow with the file, and every byte that has changed or come is marked."""
    before = (tmp / 'image.qcow2').read_bytes()
    served.cmd('block-dirty-bitmap-add', node='f', name='below', granularity=512)
    write_randomly(served, rng)
    after = (tmp / 'image.qcow2').read_bytes()
    served.cmd('block-dirty-bitmap-disable', node='f', name='below')
    # An image's file cannot be exported, but its bitmap can, with another node of that size.
    served.cmd('blockdev-add', driver='null-co', node_name='z', size=len(after))
    served.cmd(
        'block-export-add',
        type='nbd',
        id='f',
        node_name='z',
        name='f',
        bitmaps=[{'node': 'f', 'name': 'below'}],
    )
    extents = json.loads(output('nbdinfo', '--map=qemu:dirty-bitmap:below', '--json', served.uri('f')))
    assert len(after) > len(before)
    for extent in extents:
        if extent['type'] == 0:
            part = slice(extent['offset'], extent['offset'] + extent['length'])
            assert after[part] == before[part].ljust(len(after[part]), b'\0')
    served.stop()
    images.check(tmp / 'image.qcow2')


# ---- Against the reference ----

NAMES = ['a', 'b', 'c', 'd']


def random_change(rng):
    """A command that changes bitmaps, or not: it may be refused."""
    name, other = rng.choice(NAMES), rng.choice(NAMES)
    at = {'node': 'n', 'name': name}
    choices = [
        ('block-dirty-bitmap-add', {**at, 'granularity': 512 << rng.randrange(10), 'disabled': rng.random() < 0.2}),
        ('block-dirty-bitmap-remove', at),
        ('block-dirty-bitmap-clear', at),
        ('block-dirty-bitmap-enable', at),
        ('block-dirty-bitmap-disable', at),
        ('block-dirty-bitmap-merge', {'node': 'n', 'target': name, 'bitmaps': [other]}),
    ]
    return rng.choices(choices, weights=[4, 1, 1, 2, 2, 3])[0]


def random_script(rng, steps=60):
    """Writes by qemu-io, commands, and transactions of commands."""
    script = []
    for _ in range(steps):
        kind = rng.random()
        if kind < 0.4:
            length = rng.choice([512, 4096, 100000])
            command = rng.choice(['write', 'write -z', 'discard'])
            offset = rng.randrange((SIZE - length) // 512) * 512
            script.append(('write', f'{command} {offset} {-(-length // 512) * 512}'))
        elif kind < 0.8:
            script.append(random_change(rng))
        else:
            # The reference crashes when it undoes enabling or disabling a bitmap that does not exist.
            changes = [random_change(rng) for _ in range(rng.randrange(1, 6))]
            actions = [{'type': kind, 'data': data} for kind, data in changes if 'able' not in kind]
            if rng.random() < 0.3:
                actions.append({'type': 'abort', 'data': {}})
            script.append(('transaction', {'actions': actions}))
    return script


def play(one, script):
    """What the daemon says to each step, and the digests of all bitmaps in between."""
    answers = []
    one.cmd('blockdev-add', driver='null-co', node_name='n', size=SIZE, discard='unmap')
    one.cmd('block-export-add', type='nbd', id='w', node_name='n', name='w', writable=True)
    for kind, argument in script:
        if kind == 'write':
            run('qemu-io', '-f', 'raw', '-c', argument, one.uri('w'))
        else:
            answers.append(one.qmp.reply_to(one.qmp.send(kind, argument)).get('error', {}).get('desc'))
        shown = bitmaps(one)
        for name in sorted(shown):
            digest = one.cmd('x-debug-block-dirty-bitmap-sha256', node='n', name=name)['sha256']
            answers.append((name, digest, shown[name]['count'], shown[name]['recording']))
    return answers


def test_the_reference_says_the_same(daemon, rng):
    need('qemu-io')
    peer = reference()
    peer.need_10()
    script = random_script(rng)
    ours, theirs = (play(daemon(nbd=True, **options), script) for options in ({}, peer.options()))
    assert ours == theirs
