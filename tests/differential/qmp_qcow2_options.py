# SPDX-License-Identifier: Apache-2.0
"""Options of qcow2 nodes about caches and discards: what is taken and what is refused, and sizes of images with
snapshots."""

from differential.qmp_block import add, delete, file
from differential.qmp_snapshots import take
from lib.differential import Qmps, q

MIB = 1 << 20


def caches(*sets, path='empty.qcow2'):
    """Each set of options opens the image, or is refused."""
    lines = []
    for options in sets:
        lines += [add('qcow2', 'n', file=file(path), **options), delete('n')]
    return lines


def resize(size):
    return q('block_resize', node_name='n', size=size)


CASES = [
    Qmps(
        'qcow2-cache-sizes',
        lines=caches(
            {'cache_size': MIB, 'l2_cache_size': MIB, 'refcount_cache_size': MIB},
            {'cache_size': MIB, 'l2_cache_size': 2 * MIB},
            {'cache_size': MIB, 'refcount_cache_size': 2 * MIB},
            {'cache_size': MIB, 'l2_cache_size': MIB},
            {'cache_size': 0},
            {'l2_cache_size': 0},
            {'refcount_cache_size': 0},
            {'l2_cache_size': 1, 'refcount_cache_size': 1},
            {'cache_size': 1 << 62},
            {'l2_cache_size': 1 << 62},
            {'refcount_cache_size': 1 << 62},
            {'cache_size': -1},
            {'l2_cache_size': -5},
        ),
    ),
    Qmps(
        'qcow2-cache-entries-and-intervals',
        lines=caches(
            {'l2_cache_entry_size': 512},
            {'l2_cache_entry_size': 256},
            {'l2_cache_entry_size': 1000},
            {'l2_cache_entry_size': 65536},
            {'l2_cache_entry_size': 131072},
            {'l2_cache_entry_size': 0},
            {'l2_cache_entry_size': 4096, 'l2_cache_size': 0},
            {'cache_clean_interval': 0},
            {'cache_clean_interval': 1},
            {'cache_clean_interval': 4294967295},
            {'cache_clean_interval': 4294967296},
            {'cache_clean_interval': -1},
        ),
    ),
    Qmps(
        'qcow2-discard-options',
        lines=[
            *caches(
                {'discard_no_unref': True},
                {'discard_no_unref': False},
                {'pass_discard_request': True, 'pass_discard_snapshot': False, 'pass_discard_other': True},
                {'pass_discard_request': 'on'},
                {'lazy_refcounts': True},
            ),
            *caches({'discard_no_unref': True}, {'lazy_refcounts': True}, path='v2.qcow2'),
        ],
    ),
    Qmps(
        'qcow2-resize-with-snapshots',
        lines=[
            add('qcow2', 'n', file=file('data.qcow2')),
            take('n', 'a'),
            resize(8 * MIB),
            resize(2 * MIB),
            take('n', 'b'),
            resize(MIB + 512),
            resize(3 * MIB),
            resize(MIB + 1),
            delete('n'),
            add('qcow2', 'n', file=file('v2.qcow2')),
            take('n', 'a'),
            resize(2 * MIB),
            resize(MIB // 2),
        ],
    ),
]
