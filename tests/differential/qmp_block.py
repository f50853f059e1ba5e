# SPDX-License-Identifier: Apache-2.0
"""Block nodes: adding, naming, references, permissions, queries, deleting; creating images; statistics."""

from lib.differential import Qmps


def q(execute, **arguments):
    return {'execute': execute, 'arguments': {k.replace('_', '-'): v for k, v in arguments.items()}}


def add(driver, name=None, **options):
    return q('blockdev-add', driver=driver, **({'node-name': name} if name is not None else {}), **options)


def file(name, **options):
    return {'driver': 'file', 'filename': name, **options}


def delete(name):
    return q('blockdev-del', node_name=name)


def create(job, **options):
    return [q('blockdev-create', job_id=job, options=options)]


def created(job, **options):
    """Creation up to the end of its job: the answer of query-jobs shows how it went."""
    return create(job, **options) + [
        ('JOB_STATUS_CHANGE', {'id': job, 'status': 'concluded'}),
        q('query-jobs'),
        q('job-dismiss', id=job),
    ]


def amend(node, **options):
    return q('x-blockdev-amend', job_id='j', node_name=node, options=options)


def amended(node, **options):
    """The same up to the end of the job."""
    return [
        amend(node, **options),
        ('JOB_STATUS_CHANGE', {'id': 'j', 'status': 'concluded'}),
        q('query-jobs'),
        q('job-dismiss', id='j'),
    ]


NODES = q('query-named-block-nodes')
FLAT = q('query-named-block-nodes', flat=True)
GRAPH = q('x-debug-query-block-graph')

CASES = [
    Qmps(
        'add-null',
        lines=[
            add('null-co', 'n0'),
            add('null-co', 'n1', size=65536),
            add('null-aio', 'n2', size=1000, latency_ns=5),
            add('null-co', 'n3', read_zeroes=True),
            add('null-co', 'n5', size='64k'),
            add('null-co', 'n6', latency_ns=-1),
            add('null-co', 'n7', nope=1),
            add('null-co', 'n0'),
            add('null-co', 'n8', size=0),
            add('null-co', 'n9', size=9223372036854775807),
            NODES,
            delete('n0'),
            delete('n0'),
            NODES,
        ],
    ),
    Qmps(
        'add-arguments',
        lines=[
            q('blockdev-add'),
            add('null-co'),
            add('nope', 'a'),
            add('', 'a'),
            q('blockdev-add', node_name='a'),
            add('null-co', 5),
            q('blockdev-add', driver=5, node_name='a'),
            q('blockdev-add', driver=None),
            add('null-co', 'a', read_only='yes'),
            add('null-co', 'a', cache={'direct': 'on'}),
            add('null-co', 'a', cache=True),
            add('null-co', 'a', discard='maybe'),
            add('null-co', 'a', detect_zeroes='x'),
            add('null-co', 'a', detect_zeroes='unmap'),
            add('null-co', 'a', cache={'nope': True}),
            add('null-co', 'a', force_share=True),
            add('null-co', 'a', auto_read_only=1),
            add('blkreplay', 'a', image='x'),
        ],
    ),
    Qmps(
        'node-names',
        lines=[
            add('null-co', n)
            for n in ('', 'a', 'x' * 31, 'x' * 32, '1', 'a b', 'a.b-c_d', '#block1', 'a/b', '-a', '_a', 'é')
        ]
        + [NODES],
    ),
    Qmps(
        'common-options',
        lines=[
            add('null-co', 'ro', read_only=True),
            add('null-co', 'aro', auto_read_only=True),
            add('null-co', 'd', discard='unmap'),
            add('null-co', 'z', detect_zeroes='on'),
            add('null-co', 'uz', detect_zeroes='unmap', discard='unmap'),
            add('null-co', 'c', cache={'direct': True, 'no-flush': True}),
            add('null-co', 'fs', read_only=True, force_share=True),
            add('raw', 'r', file=file('raw.img', discard='unmap'), discard='unmap'),
            add('file', 'f1', filename='raw.img', cache={'direct': True}),
            NODES,
            FLAT,
        ],
    ),
    Qmps(
        'common-active',
        v10=True,
        lines=[add('null-co', 'inactive', active=False), add('null-co', 'active', active=True), NODES],
    ),
    Qmps(
        'add-file',
        lines=[
            add('file', 'f', filename='raw.img'),
            add('file', 'g', filename='missing.img'),
            add('file', 'h', filename='.'),
            add('file', 'i'),
            add('file', 'j', filename=5),
            add('file', 'k', filename=''),
            add('file', 'l', filename='raw.img', aio='nope'),
            add('file', 'm', filename='raw.img', aio='threads'),
            add('file', 'n', filename='raw.img', aio='native'),
            add('file', 'o', filename='raw.img', aio='native', cache={'direct': True}),
            add('file', 'p', filename='raw.img', aio='io_uring'),
            add('file', 'q', filename='raw.img', locking='nope'),
            add('file', 'r', filename='raw.img', locking='on'),
            add('file', 's', filename='/dev/null'),
            add('file', 't', filename='raw.img', aio_max_batch=-1),
            add('file', 'u', filename='raw.img', pr_manager='nope'),
            add('file', 'v', filename='raw.img', drop_cache=False),
            add('file', 'w', filename='x' * 5000),
            add('file', 'y', filename='missing/dir.img'),
            add('host_device', 'z', filename='raw.img'),
            add('host_device', 'z2', filename='/dev/missing'),
            add('host_device', 'z3', filename='/dev/null'),
            add('file', 'prot', filename='file:raw.img'),
            add('file', 'small', filename='small.img'),
            add('file', 'empty', filename='empty.img'),
            NODES,
        ],
    ),
    Qmps(
        'add-compress',
        lines=[
            add('compress', 'c0', file={'driver': 'qcow2', 'node-name': 'q', 'file': file('empty.qcow2')}),
            add('compress', 'c1', file='c0'),
            add('compress', 'c2', file=file('raw.img')),
            add('compress', 'c3', file={'driver': 'raw', 'file': file('raw.img')}),
            add('compress', 'c4', file={'driver': 'null-co'}),
            add('compress', 'c5'),
            add('compress', 'c6', file='nope'),
            add('compress', 'c7', file='q', foo=1),
            add('compress', 'c8', file='q', read_only=True),
            delete('q'),
            NODES,
            FLAT,
            GRAPH,
            delete('c0'),
            delete('c8'),
            delete('q'),
        ],
    ),
    Qmps(
        'add-raw',
        lines=[
            add('file', 'f', filename='raw.img'),
            add('raw', 'r0', file='f'),
            add('raw', 'r1', file='f', offset=512),
            add('raw', 'r2', file='f', offset=512, size=1024),
            add('raw', 'r3', file='f', offset=100, size=7),
            add('raw', 'r4', file='f', offset=1048576),
            add('raw', 'r5', file='f', offset=2 << 20),
            add('raw', 'r6', file='f', size=2 << 20),
            add('raw', 'r7', file='f', offset=-1),
            add('raw', 'r8', file='f', offset=1048000, size=1000),
            add('raw', 'r9', file='nope'),
            add('raw', 'r10'),
            add('raw', 'r11', file=5),
            add('raw', 'r12', file=None),
            add('raw', 'r13', file={}),
            add('raw', 'r14', file={'driver': 'file'}),
            add('raw', 'r15', file=file('missing.img')),
            add('raw', 'r16', file={'driver': 'raw', 'file': file('raw.img')}),
            add('raw', 'r17', file=file('small.img'), size=600, read_only=True),
            add('raw', 'r18', file=file('raw.img', **{'node-name': 'f'})),
            add('raw', 'r19', file=file('raw.img', **{'node-name': 'inner'})),
            delete('f'),
            delete('inner'),
            delete('r19'),
            delete('inner'),
            NODES,
            GRAPH,
        ],
    ),
    Qmps(
        'add-qcow2',
        lines=[
            add('qcow2', 'q', file=file('data.qcow2')),
            NODES,
            FLAT,
            delete('q'),
            NODES,
            add('qcow2', 'top', file=file('top.qcow2')),
            NODES,
            FLAT,
            GRAPH,
            delete('top'),
            add('qcow2', 'top0', file=file('top.qcow2'), backing=None),
            NODES,
            delete('top0'),
            add('qcow2', 'base', file=file('data.qcow2'), read_only=True),
            add('qcow2', 'top1', file=file('top.qcow2'), backing='base'),
            NODES,
            GRAPH,
            delete('base'),
            delete('top1'),
            delete('base'),
        ],
    ),
    Qmps(
        'add-qcow2-bad',
        lines=[
            add('qcow2', 'q0', file=file('raw.img')),
            add('qcow2', 'q1', file=file('empty.img')),
            add('qcow2', 'q2', file=file('garbage.qcow2')),
            add('qcow2', 'q3', file=file('orphan.qcow2')),
            add('qcow2', 'q4', file=file('orphan.qcow2'), backing=None),
            add('qcow2', 'q5'),
            add('qcow2', 'q6', file=file('data.qcow2'), backing='nope'),
            add('qcow2', 'q7', file=file('data.qcow2'), backing=5),
            add('qcow2', 'q8', file=file('data.qcow2'), lazy_refcounts='x'),
            add('qcow2', 'q9', file=file('v2.qcow2'), lazy_refcounts=True),
            add('qcow2', 'q10', file=file('data.qcow2'), l2_cache_size=-1),
            add('qcow2', 'q11', file=file('data.qcow2'), l2_cache_entry_size=100),
            add('qcow2', 'q12', file=file('data.qcow2'), cache_size=1, l2_cache_size=100000),
            add('qcow2', 'q13', file=file('data.qcow2'), overlap_check='nope'),
            add('qcow2', 'q14', file=file('data.qcow2'), backing=file('raw.img')),
            add('qcow2', 'q15', file=file('data.qcow2'), data_file=file('raw.img')),
            add('qcow2', 'q16', file=file('data.qcow2'), encrypt={'format': 'luks'}),
            add('qcow2', 'q17', file=file('data.qcow2'), nope=1),
            add('qcow2', 'q18', file=file('data.qcow2'), overlap_check={'template': 'all'}),
            NODES,
        ],
    ),
    Qmps(
        'references',
        lines=[
            add('file', 'f', filename='data.qcow2'),
            add('qcow2', 'q', file='f'),
            add('qcow2', 'q2', file='f'),
            add('raw', 'r', file='f'),
            add('raw', 'rr', file='f', read_only=True),
            GRAPH,
            delete('f'),
            delete('q'),
            add('raw', 'r', file='f'),
            add('raw', 'r3', file='r'),
            delete('r'),
            add('raw', 'self', file='self'),
            GRAPH,
        ],
    ),
    Qmps(
        'del-arguments',
        lines=[
            delete(''),
            delete('nope'),
            q('blockdev-del'),
            q('blockdev-del', node_name=1),
            q('blockdev-del', id='x'),
            delete('#block123'),
        ],
    ),
    Qmps(
        'resize',
        lines=[
            *created('j', driver='file', filename='a', size=1 << 20),
            *created('k', driver='file', filename='q', size=0),
            add('file', 'f', filename='a'),
            add('raw', 'r', file='f'),
            add('file', 'g', filename='q'),
            *created('m', driver='qcow2', file='g', size=1 << 20),
            add('qcow2', 'q', file='g'),
            add('null-co', 'n'),
            add('null-co', 'o', read_only=True),
            q('block_resize', node_name='r', size=2 << 20),
            q('block_resize', node_name='q', size=3 << 20),
            q('block_resize', node_name='q', size=1000),
            q('block_resize', node_name='q', size=1 << 16),
            q('block_resize', node_name='n', size=1024),
            q('block_resize', node_name='o', size=1024),
            q('block_resize', node_name='r', size=-1),
            q('block_resize', size=1024),
            q('block_resize', device='x', size=1024),
            q('block_resize', device='r', node_name='x', size=1024),
            q('block_resize', node_name='r'),
            q('block_resize', node_name='f', size=1 << 20),
        ],
    ),
    Qmps(
        'resize-below-filter',
        lines=[
            *created('k', driver='file', filename='q', size=0),
            add('file', 'g', filename='q'),
            *created('m', driver='qcow2', file='g', size=1 << 20),
            add('qcow2', 'q', file='g'),
            add('compress', 'c', file='q'),
            add('raw', 'r', file='c'),
            q('block_resize', node_name='q', size=3 << 20),
            q('block-dirty-bitmap-add', node='c', name='b'),
            FLAT,
            q('block_resize', node_name='c', size=1 << 19),
            FLAT,
            q('block_resize', node_name='q', size=2 << 20),
            q('block_resize', node_name='r', size=5 << 20),
            FLAT,
            q('nbd-server-start', addr={'type': 'unix', 'data': {'path': 'nbd.sock'}}),
            q('block-export-add', type='nbd', id='e', node_name='r', writable=True),
            q('block_resize', node_name='q', size=1 << 20),
            q('block_resize', node_name='c', size=1 << 20),
        ],
    ),
    Qmps(
        'move-to-iothread',
        lines=[
            q('object-add', qom_type='iothread', id='t'),
            add('null-co', 'n'),
            q('x-blockdev-set-iothread', node_name='n', iothread='t'),
            q('x-blockdev-set-iothread', node_name='n', iothread='u'),
            q('x-blockdev-set-iothread', node_name='m', iothread='t'),
            q('x-blockdev-set-iothread', node_name='n', iothread=None),
            q('x-blockdev-set-iothread', node_name='n', iothread=5),
            q('x-blockdev-set-iothread', node_name='n'),
            delete('n'),
        ],
    ),
    Qmps(
        'two-writers',
        lines=[
            add('file', 'a', filename='data.qcow2', locking='on'),
            add('qcow2', 'qa', file='a'),
            add('qcow2', 'qb', file=file('data.qcow2')),
            add('qcow2', 'qc', file=file('data.qcow2'), read_only=True),
            add(
                'qcow2',
                'qd',
                file=file('data.qcow2', **{'force-share': True, 'read-only': True}),
                read_only=True,
                force_share=True,
            ),
            NODES,
        ],
    ),
    Qmps(
        'read-only-file',
        lines=[
            add('qcow2', 'q', file=file('data.qcow2', **{'read-only': True})),
            add('qcow2', 'q2', file=file('data.qcow2', **{'read-only': True}), read_only=True),
            add(
                'qcow2',
                'q3',
                file=file('data.qcow2', **{'auto-read-only': True, 'read-only': True}),
                auto_read_only=True,
            ),
            NODES,
        ],
    ),
    Qmps(
        'blockstats',
        lines=[
            add('qcow2', 'q', file=file('data.qcow2', **{'node-name': 'f'})),
            q('query-blockstats'),
            q('query-blockstats', query_nodes=False),
            q('query-blockstats', query_nodes=True),
            q('query-blockstats', query_nodes='x'),
            q('query-blockstats', nope=1),
        ],
    ),
    Qmps(
        'create-file',
        lines=[
            *created('j0', driver='file', filename='new.img', size=65536),
            add('file', 'n', filename='new.img'),
            NODES,
            *created('j1', driver='file', filename='missing/new.img', size=65536),
            *created('j2', driver='file', filename='pre.img', size=65536, preallocation='falloc'),
            *created('j3', driver='file', filename='full.img', size=65536, preallocation='full'),
            *created('j4', driver='file', filename='meta.img', size=65536, preallocation='metadata'),
            *created('j5', driver='file', filename='odd.img', size=1000),
            *created('j6', driver='file', filename='zero.img', size=0),
        ],
    ),
    Qmps(
        'create-arguments',
        lines=[
            q('blockdev-create'),
            q('blockdev-create', job_id='j'),
            *create('j'),
            *create('j', driver='nope'),
            *create('j', driver='raw'),
            *create('j', driver='null-co'),
            *create('j', driver='file'),
            *created('j', driver='file', filename='x', size=-1),
            *create('j', driver='file', filename='x', size='1M'),
            *create('j', driver='qcow2', size=1),
            *create('', driver='file', filename='x', size=1),
            *create('1', driver='file', filename='x', size=1),
            q('blockdev-create', options={'driver': 'file', 'filename': 'x', 'size': 1}),
            q('query-jobs'),
            q('job-dismiss', id='nope'),
            q('job-dismiss'),
            q('job-dismiss', id=''),
        ],
    ),
    Qmps(
        'create-twice',
        lines=[
            *create('j', driver='file', filename='a.img', size=1024),
            ('JOB_STATUS_CHANGE', {'id': 'j', 'status': 'concluded'}),
            *create('j', driver='file', filename='b.img', size=1024),
            q('job-dismiss', id='j'),
            q('query-jobs'),
        ],
    ),
    Qmps(
        'create-qcow2',
        lines=[
            *created('j0', driver='file', filename='n.qcow2', size=0),
            add('file', 'f', filename='n.qcow2'),
            *created('j1', driver='qcow2', file='f', size=10 << 20),
            add('qcow2', 'q', file='f'),
            NODES,
            delete('q'),
            *created('j2', driver='qcow2', file='f', size=1 << 20, version='v2', **{'cluster-size': 4096}),
            add('qcow2', 'q', file='f'),
            NODES,
            delete('q'),
            *created(
                'j3',
                driver='qcow2',
                file='f',
                size=1 << 20,
                **{'cluster-size': 2 << 20, 'refcount-bits': 1, 'lazy-refcounts': True},
            ),
            add('qcow2', 'q', file='f'),
            NODES,
            delete('q'),
            *created(
                'j4',
                driver='qcow2',
                file='f',
                size=1 << 20,
                **{'extended-l2': True, 'compression-type': 'zstd'},
            ),
            add('qcow2', 'q', file='f'),
            NODES,
            delete('q'),
            *created(
                'j5',
                driver='qcow2',
                file='f',
                size=1 << 20,
                **{'backing-file': 'data.qcow2', 'backing-fmt': 'qcow2'},
            ),
            add('qcow2', 'q', file='f'),
            NODES,
            delete('q'),
            *created('j6', driver='qcow2', file='f', size=1 << 20, preallocation='metadata'),
            add('qcow2', 'q', file='f'),
            NODES,
        ],
    ),
    Qmps(
        'create-qcow2-bad',
        lines=[
            add('file', 'f', filename='empty.img'),
            *[
                step
                for i, options in enumerate(
                    [
                        {'cluster-size': 1000},
                        {'cluster-size': 256},
                        {'cluster-size': 4 << 20},
                        {'cluster-size': 0},
                        {'refcount-bits': 3},
                        {'refcount-bits': 128},
                        {'refcount-bits': 1, 'version': 'v2'},
                        {'lazy-refcounts': True, 'version': 'v2'},
                        {'extended-l2': True, 'cluster-size': 4096},
                        {'extended-l2': True, 'version': 'v2'},
                        {'compression-type': 'zstd', 'version': 'v2'},
                        {'backing-fmt': 'raw'},
                        {'backing-file': 'x', 'preallocation': 'full', 'backing-fmt': 'raw'},
                        {'data-file-raw': True},
                        {'size': 1000},
                        {'size': 1 << 62},
                        {'data-file': 'f', 'version': 'v2'},
                        {'backing-file': 'x' * 1100},
                    ]
                )
                for step in created(f'j{i}', **{'driver': 'qcow2', 'file': 'f', 'size': 1 << 20, **options})
            ],
            *create('k', driver='qcow2', file='nope', size=1),
            ('JOB_STATUS_CHANGE', {'id': 'k', 'status': 'concluded'}),
            q('query-jobs'),
        ],
    ),
    Qmps(
        'amend',
        lines=[
            add('qcow2', 'q', file=file('empty.qcow2', **{'node-name': 'f'})),
            add('raw', 'r', file=file('raw.img')),
            amend('none', driver='qcow2'),
            amend('r', driver='qcow2'),
            amend('r', driver='raw'),
            amend('f', driver='file'),
            q('x-blockdev-amend', job_id='$', node_name='q', options={'driver': 'qcow2'}),
            *amended('q', driver='qcow2'),
            amend('q', driver='qcow2', encrypt={'format': 'luks'}),
            amend('q', driver='qcow2', encrypt={'format': 'luks', 'state': 'nope'}),
            amend('q', driver='qcow2', encrypt={'format': 'qcow', 'state': 'active'}),
            *amended('q', driver='qcow2', encrypt={'format': 'luks', 'state': 'inactive', 'keyslot': 0}),
            amend('q', driver='qcow2'),
            ('JOB_STATUS_CHANGE', {'id': 'j', 'status': 'concluded'}),
            amend('q', driver='qcow2'),
            delete('q'),
            q('job-dismiss', id='j'),
            delete('q'),
            NODES,
        ],
    ),
]
