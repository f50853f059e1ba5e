# SPDX-License-Identifier: Apache-2.0
"""NBD on the wire: handshake, options, requests and replies, byte by byte."""

import struct

from lib.differential import Nbd, q
from lib.nbdwire import (
    CMD_CACHE,
    CMD_DISC,
    CMD_FLUSH,
    CMD_READ,
    CMD_STATUS,
    CMD_TRIM,
    CMD_WRITE,
    CMD_ZEROES,
    FLAG_DF,
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLAG_PAYLOAD,
    FLAG_REQ_ONE,
    OPT_ABORT,
    OPT_EXTENDED,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_LIST_META,
    OPT_SET_META,
    OPT_STARTTLS,
    OPT_STRUCTURED,
    info_payload,
    meta_payload,
    text,
)

ARGS = [
    '--blockdev',
    'file,node-name=sparse,filename=sparse.img,discard=unmap',
    '--blockdev',
    'file,node-name=small,filename=small.img',
    '--blockdev',
    'null-co,node-name=null,size=67108864,read-zeroes=on',
    '--blockdev',
    'qcow2,node-name=top,file.driver=file,file.filename=top.qcow2,discard=unmap',
    '--export',
    'nbd,id=sparse,node-name=sparse,writable=on',
    '--export',
    'nbd,id=ro,node-name=small,name=ro,description=a small one',
    '--export',
    'nbd,id=null,node-name=null,writable=on',
    '--export',
    'nbd,id=top,node-name=top,writable=on,allocation-depth=on',
]
ALLOC = 'base:allocation'
DEPTH = 'qemu:allocation-depth'
MIB = 1 << 20
INFOS = (0, 1, 2, 3)


def nbd(name, *steps, **more):
    return Nbd(f'nbd-{name}', list(steps), ARGS, **more)


def hello(name, *steps, structured=False, flags=3, contexts=(), extended=False, **more):
    """A case that begins with a negotiated connection to an export."""
    export, name = name.split(':', 1)
    front = [('flags', flags)]
    if structured:
        front.append(('opt', OPT_STRUCTURED, b''))
    if extended:
        front.append(('ext',))
    if contexts:
        front.append(('opt', OPT_SET_META, meta_payload(export, *contexts)))
    return nbd(name, *front, ('opt', OPT_GO, info_payload(export, *INFOS)), *steps, **more)


REQUESTS = [
    ('req', CMD_READ, 0, 512),
    ('req', CMD_READ, MIB, 4096),
    ('req', CMD_READ, 1, 1),
    ('req', CMD_READ, 0, 0),
    ('req', CMD_READ, 4 * MIB - 1, 1),
    ('req', CMD_READ, 4 * MIB, 0),
    ('req', CMD_READ, 4 * MIB, 1),
    ('req', CMD_READ, 4 * MIB - 1, 2),
    ('req', CMD_READ, (1 << 64) - 512, 512),
    ('req', CMD_READ, 0, 512, FLAG_FUA),
    ('req', CMD_READ, 0, 512, 0x8000),
    ('req', CMD_WRITE, 512, 4, 0, b'abcd'),
    ('req', CMD_READ, 510, 8),
    ('req', CMD_WRITE, 8192, 512, FLAG_FUA, b'w' * 512),
    ('req', CMD_WRITE, 0, 0, 0, b''),
    ('req', CMD_WRITE, 4 * MIB - 2, 4, 0, b'over'),
    ('req', CMD_WRITE, 0, 4, 0x40, b'flag'),
    ('req', CMD_FLUSH, 0, 0),
    ('req', CMD_FLUSH, 4096, 0),
    ('req', CMD_FLUSH, 0, 512),
    ('req', CMD_FLUSH, 0, 0, FLAG_FUA),
    ('req', CMD_TRIM, MIB, 4096),
    ('req', CMD_TRIM, 0, 4 * MIB),
    ('req', CMD_TRIM, 4 * MIB, 1),
    ('req', CMD_TRIM, 0, 0),
    ('req', CMD_TRIM, 0, 512, FLAG_FUA),
    ('req', CMD_TRIM, 0, 512, FLAG_NO_HOLE),
    ('req', CMD_ZEROES, MIB, 4096),
    ('req', CMD_ZEROES, 0, 512, FLAG_NO_HOLE),
    ('req', CMD_ZEROES, 0, 512, FLAG_FAST_ZERO),
    ('req', CMD_ZEROES, 0, 512, FLAG_FUA | FLAG_NO_HOLE),
    ('req', CMD_ZEROES, 4 * MIB - 1, 2),
    ('req', CMD_ZEROES, 0, 0),
    ('req', CMD_ZEROES, 3, 5),
    ('req', CMD_CACHE, 0, 4096),
    ('req', CMD_CACHE, 4 * MIB, 1),
    ('req', CMD_CACHE, 0, 0),
    ('req', 77, 0, 0),
    ('req', 8, 0, 512),
    ('req', CMD_STATUS, 0, 512),
    ('req', CMD_READ, 0, 512, FLAG_DF),
    ('req', CMD_READ, 0, 16, FLAG_REQ_ONE),
    ('req', CMD_FLUSH, 0, 0, FLAG_PAYLOAD),
]
STATUS = [
    ('req', CMD_STATUS, 0, 4 * MIB),
    ('req', CMD_STATUS, 0, 4 * MIB, FLAG_REQ_ONE),
    ('req', CMD_STATUS, MIB, 512),
    ('req', CMD_STATUS, MIB - 1, 2),
    ('req', CMD_STATUS, 1, 1),
    ('req', CMD_STATUS, 0, 0),
    ('req', CMD_STATUS, 4 * MIB, 1),
    ('req', CMD_STATUS, 4 * MIB - 512, 1024),
    ('req', CMD_STATUS, 0, 512, FLAG_DF),
]
SPLIT = [
    ('req', CMD_READ, 0, 4 * MIB),
    ('req', CMD_READ, 0, 4 * MIB, FLAG_DF),
    ('req', CMD_READ, MIB - 512, 1024),
    ('req', CMD_READ, 0, 4096),
    ('req', CMD_READ, MIB, 65536),
]


def qmp(execute, **arguments):
    return ('qmp', q(execute, **arguments))


def bitmap(verb, name, node='null', **options):
    return qmp(f'block-dirty-bitmap-{verb}', node=node, name=name, **options)


NAMED = 'qemu:dirty-bitmap:'
NODES = qmp('query-named-block-nodes', flat=True)
# An export `m` of null with the bitmaps fine, coarse and one of top, and what is written to it.
MARKED = [
    bitmap('add', 'fine', granularity=512),
    bitmap('add', 'coarse'),
    bitmap('add', 'off', disabled=True),
    bitmap('add', 'elsewhere', 'top', disabled=True),
    qmp(
        'block-export-add',
        type='nbd',
        id='m',
        name='m',
        node_name='null',
        writable=True,
        bitmaps=['fine', 'coarse', 'off', {'node': 'top', 'name': 'elsewhere'}],
    ),
]
MARKS = [
    ('req', CMD_WRITE, 1000, 4, 0, b'abcd'),
    ('req', CMD_WRITE, 65535, 2, 0, b'ab'),
    ('req', CMD_ZEROES, MIB, 5000),
    ('req', CMD_TRIM, 2 * MIB + 1, 4096),
    ('req', CMD_WRITE, 64 * MIB - 1, 1, FLAG_FUA, b'e'),
    ('req', CMD_WRITE, 64 * MIB - 1, 2, 0, b'no'),
    ('req', CMD_WRITE, 5 * MIB, 0, 0, b''),
    ('req', CMD_ZEROES, 6 * MIB, 0),
]
BITMAP_STATUS = [
    ('req', CMD_STATUS, 0, 64 * MIB),
    ('req', CMD_STATUS, 0, 64 * MIB, FLAG_REQ_ONE),
    ('req', CMD_STATUS, 1001, 70000),
    ('req', CMD_STATUS, 1024, 512),
    ('req', CMD_STATUS, 64 * MIB - 1, 1),
    ('req', CMD_STATUS, 10, 1, FLAG_REQ_ONE),
]


def marked(name, *contexts, extended=False):
    """A connection that writes and then asks for the contexts."""
    front = [('ext',)] if extended else [('opt', OPT_STRUCTURED, b'')]
    return nbd(
        name,
        *MARKED,
        ('flags', 3),
        *front,
        ('opt', OPT_SET_META, meta_payload('m', *contexts)),
        ('opt', OPT_GO, info_payload('m', *INFOS)),
        *MARKS,
        *BITMAP_STATUS,
        NODES,
        *[qmp('x-debug-block-dirty-bitmap-sha256', node='null', name=one) for one in ('fine', 'coarse', 'off')],
    )


CASES = [
    *[
        nbd(f'client-flags-{flags}', ('flags', flags), ('opt', OPT_LIST, b''))
        for flags in (0, 1, 2, 3, 4, 0x80000000)
    ],
    nbd(
        'bad-option-magic', ('flags', 3), ('raw', b'NOTMAGIC' + struct.pack('>II', OPT_LIST, 0)), ('closed',)
    ),
    nbd('list', ('flags', 3), ('opt', OPT_LIST, b''), ('opt', OPT_LIST, b'junk'), ('opt', OPT_LIST, b'')),
    nbd('abort', ('flags', 3), ('opt', OPT_ABORT, b''), ('closed',)),
    nbd('abort-payload', ('flags', 3), ('opt', OPT_ABORT, b'bye'), ('closed',)),
    nbd(
        'starttls',
        ('flags', 3),
        ('opt', OPT_STARTTLS, b''),
        ('opt', OPT_STARTTLS, b'x'),
        ('opt', OPT_LIST, b''),
    ),
    *[
        nbd(
            f'unknown-option-{number}',
            ('flags', 3),
            ('opt', number, b''),
            ('opt', number, b'payload'),
            ('opt', OPT_ABORT, b''),
        )
        for number in (0, 4, 12, 99, 0xFFFFFFFF)
    ],
    nbd('option-too-long', ('flags', 3), ('opt', 99, b'z' * 40000), ('opt', OPT_LIST, b'')),
    nbd('option-huge-length', ('flags', 3), ('opt', 99, b'', {'length': 0x7FFFFFFF}), ('closed',)),
    nbd('list-huge-length', ('flags', 3), ('opt', OPT_LIST, b'', {'length': 0xFFFFFFFF}), ('closed',)),
    *[
        nbd(f'info-{i}', ('flags', 3), ('opt', OPT_INFO, payload), ('opt', OPT_LIST, b''))
        for i, payload in enumerate(
            [
                info_payload('sparse'),
                info_payload('sparse', 0),
                info_payload('sparse', 1),
                info_payload('sparse', 2),
                info_payload('sparse', 3),
                info_payload('ro', *INFOS),
                info_payload('null', *INFOS),
                info_payload('top', 3, 2, 1, 0),
                info_payload('sparse', 3, 3),
                info_payload('sparse', 99),
                info_payload('nope'),
                info_payload(''),
                info_payload('x' * 4096),
                info_payload('x' * 4097),
                b'',
                b'\0',
                text('sparse'),
                text('sparse') + b'\0\1',
                text('sparse') + b'\0\0x',
                struct.pack('>I', 100) + b'sparse\0\0',
                struct.pack('>I', 0xFFFFFFFF) + b'sparse\0\0',
                text('spa\0rse') + b'\0\0',
                info_payload('sparse', *INFOS * 100),
            ]
        )
    ],
    nbd(
        'go-unknown-then-good',
        ('flags', 3),
        ('opt', OPT_GO, info_payload('nope')),
        ('opt', OPT_GO, info_payload('sparse', *INFOS)),
        ('req', CMD_READ, 0, 16),
        ('req', CMD_DISC, 0, 0),
    ),
    nbd(
        'go-bad-payload',
        ('flags', 3),
        ('opt', OPT_GO, b'xx'),
        ('opt', OPT_GO, text('sparse')),
        ('opt', OPT_GO, info_payload('sparse')),
    ),
    nbd('go-no-zeroes-flag', ('flags', 1), ('opt', OPT_GO, info_payload('sparse')), ('req', CMD_READ, 0, 16)),
    nbd('export-name', ('flags', 3), ('export-name', b'sparse', 10), ('req', CMD_READ, MIB, 16)),
    nbd('export-name-zeroes', ('flags', 1), ('export-name', b'sparse', 134), ('req', CMD_READ, MIB, 16)),
    nbd(
        'export-name-read-only',
        ('flags', 3),
        ('export-name', b'ro', 10),
        ('req', CMD_READ, 0, 16),
        ('req', CMD_WRITE, 0, 4, 0, b'abcd'),
    ),
    nbd('export-name-unknown', ('flags', 3), ('export-name', b'nope', 10), ('closed',)),
    nbd('export-name-empty', ('flags', 3), ('export-name', b'', 10), ('closed',)),
    nbd(
        'export-name-structured',
        ('flags', 3),
        ('opt', OPT_STRUCTURED, b''),
        ('export-name', b'sparse', 10),
        ('req', CMD_READ, MIB, 16),
    ),
    nbd('export-name-extended', ('flags', 3), ('ext',), ('export-name', b'sparse', 10), v10=True),
    nbd(
        'structured',
        ('flags', 3),
        ('opt', OPT_STRUCTURED, b'x'),
        ('opt', OPT_STRUCTURED, b''),
        ('opt', OPT_STRUCTURED, b''),
        ('opt', OPT_LIST, b''),
    ),
    nbd(
        'extended',
        ('flags', 3),
        ('opt', OPT_EXTENDED, b'x'),
        ('opt', OPT_EXTENDED, b''),
        ('opt', OPT_EXTENDED, b''),
        ('opt', OPT_STRUCTURED, b''),
        v10=True,
    ),
    nbd(
        'extended-after-structured',
        ('flags', 3),
        ('opt', OPT_STRUCTURED, b''),
        ('opt', OPT_EXTENDED, b''),
        ('opt', OPT_STRUCTURED, b''),
        v10=True,
    ),
    *[
        nbd(
            f'meta-list-{i}',
            ('flags', 3),
            ('opt', OPT_STRUCTURED, b''),
            ('opt', OPT_LIST_META, payload),
            ('opt', OPT_LIST, b''),
        )
        for i, payload in enumerate(
            [
                meta_payload('sparse'),
                meta_payload('top'),
                meta_payload('sparse', 'base:'),
                meta_payload('top', 'qemu:'),
                meta_payload('top', ALLOC, DEPTH),
                meta_payload('top', 'qemu:dirty-bitmap:'),
                meta_payload('top', 'qemu:dirty-bitmap:x'),
                meta_payload('nope'),
                meta_payload('sparse', 'base'),
                meta_payload('sparse', 'other:thing', ''),
                meta_payload('sparse', 'base:nope'),
                meta_payload('top', 'qemu:allocation'),
                meta_payload('top', ALLOC, ALLOC),
                b'',
                text('sparse'),
                text('sparse') + b'\0\0\0\5',
                text('sparse') + struct.pack('>I', 1) + struct.pack('>I', 0xFFFFFFFF),
                meta_payload('sparse', 'a' * 5000),
                meta_payload('sparse', 'base:' + 'b' * 4091),
                meta_payload('x' * 5000, 'base:'),
            ]
        )
    ],
    *[
        nbd(
            f'meta-set-{i}',
            ('flags', 3),
            ('opt', OPT_STRUCTURED, b''),
            ('opt', OPT_SET_META, payload),
            ('opt', OPT_LIST, b''),
        )
        for i, payload in enumerate(
            [
                meta_payload('sparse'),
                meta_payload('sparse', ALLOC),
                meta_payload('top', ALLOC, DEPTH),
                meta_payload('top', DEPTH, ALLOC),
                meta_payload('sparse', 'base:'),
                meta_payload('top', 'qemu:'),
                meta_payload('nope', ALLOC),
                meta_payload('sparse', DEPTH),
                meta_payload('sparse', ALLOC, 'qemu:dirty-bitmap:x'),
                b'xx',
                meta_payload('sparse', *['x:y'] * 500),
            ]
        )
    ],
    nbd(
        'meta-without-structured',
        ('flags', 3),
        ('opt', OPT_SET_META, meta_payload('sparse', ALLOC)),
        ('opt', OPT_LIST_META, meta_payload('sparse')),
    ),
    nbd(
        'meta-other-export',
        ('flags', 3),
        ('opt', OPT_STRUCTURED, b''),
        ('opt', OPT_SET_META, meta_payload('sparse', ALLOC)),
        ('opt', OPT_GO, info_payload('null')),
        ('req', CMD_STATUS, 0, 512),
    ),
    nbd(
        'meta-replaced',
        ('flags', 3),
        ('opt', OPT_STRUCTURED, b''),
        ('opt', OPT_SET_META, meta_payload('sparse', ALLOC)),
        ('opt', OPT_SET_META, meta_payload('sparse')),
        ('opt', OPT_GO, info_payload('sparse')),
        ('req', CMD_STATUS, 0, 512),
    ),
    nbd(
        'meta-replaced-after-unknown',
        ('flags', 3),
        ('opt', OPT_STRUCTURED, b''),
        ('opt', OPT_SET_META, meta_payload('sparse', ALLOC)),
        ('opt', OPT_SET_META, meta_payload('nope', ALLOC)),
        ('opt', OPT_GO, info_payload('sparse')),
        ('req', CMD_STATUS, 0, 512),
    ),
    hello('sparse:simple-requests', *REQUESTS),
    hello('sparse:structured-requests', *REQUESTS, structured=True),
    hello('sparse:extended-requests', *REQUESTS, extended=True, v10=True),
    hello('null:null-requests', *REQUESTS, structured=True),
    hello('top:qcow2-requests', *REQUESTS, structured=True),
    hello(
        'ro:read-only-requests',
        ('req', CMD_READ, 0, 1000),
        ('req', CMD_READ, 999, 1),
        ('req', CMD_READ, 1000, 1),
        ('req', CMD_WRITE, 0, 4, 0, b'abcd'),
        ('req', CMD_TRIM, 0, 4),
        ('req', CMD_ZEROES, 0, 4),
        ('req', CMD_FLUSH, 0, 0),
        ('req', CMD_CACHE, 0, 4),
        structured=True,
    ),
    hello(
        'ro:read-only-simple',
        ('req', CMD_WRITE, 0, 4, 0, b'abcd'),
        ('req', CMD_READ, 0, 4),
        ('req', CMD_TRIM, 0, 4),
        ('req', CMD_ZEROES, 0, 4),
    ),
    hello(
        'ro:read-only-extended',
        ('req', CMD_READ, 0, 1000),
        ('req', CMD_WRITE, 0, 4, FLAG_PAYLOAD, b'abcd'),
        ('req', CMD_TRIM, 0, 4),
        ('req', CMD_FLUSH, 0, 0),
        extended=True,
        v10=True,
    ),
    hello('sparse:split', *SPLIT, structured=True),
    hello('top:split-qcow2', *SPLIT, structured=True),
    hello('sparse:split-extended', *SPLIT, extended=True, v10=True),
    hello('sparse:status', *STATUS, structured=True, contexts=[ALLOC]),
    hello('top:status-both', *STATUS, structured=True, contexts=[ALLOC, DEPTH]),
    hello('top:status-depth', *STATUS, structured=True, contexts=[DEPTH]),
    hello('null:status-null', *STATUS, structured=True, contexts=[ALLOC]),
    hello(
        'top:status-extended',
        *STATUS,
        ('req', CMD_STATUS, 0, 1 << 40),
        extended=True,
        contexts=[ALLOC, DEPTH],
        v10=True,
    ),
    hello(
        'null:sizes',
        ('req', CMD_READ, 0, 32 * MIB + 1),
        ('req', CMD_CACHE, 0, 32 * MIB),
        ('req', CMD_CACHE, 0, 32 * MIB + 1),
        ('req', CMD_TRIM, 0, 64 * MIB),
        ('req', CMD_ZEROES, 0, 64 * MIB),
        ('req', CMD_READ, 0, 0xFFFFFFFF),
        ('req', CMD_ZEROES, 0, 0xFFFFFFFF),
        structured=True,
    ),
    hello(
        'null:too-long-write',
        ('raw', struct.pack('>IHHQQI', 0x25609513, 0, CMD_WRITE, 5, 0, 32 * MIB + 1)),
        ('reply',),  # a request sent now could make the end come before the answer
        ('closed',),
    ),
    hello(
        'null:extended-sizes',
        ('req', CMD_READ, 0, 1 << 33),
        ('req', CMD_ZEROES, 0, 1 << 33),
        ('req', CMD_TRIM, 0, 1 << 63),
        ('req', CMD_TRIM, 0, 64 * MIB),
        extended=True,
        v10=True,
    ),
    hello(
        'null:extended-payload-flags',
        ('req', CMD_WRITE, 0, 4, FLAG_PAYLOAD, b'abcd'),
        ('req', CMD_WRITE, 0, 4, 0, b'abcd'),
        ('req', CMD_READ, 0, 4),
        ('req', CMD_READ, 0, 4, FLAG_PAYLOAD, b'abcd'),
        ('req', CMD_READ, 0, 4),
        extended=True,
        v10=True,
    ),
    hello('sparse:bad-request-magic', ('badmagic',)),
    hello('sparse:disconnect', ('req', CMD_DISC, 0, 0)),
    hello('sparse:no-structured-df', ('req', CMD_READ, 0, 512, FLAG_DF)),
    hello(
        'top:written-status',
        ('req', CMD_WRITE, 0, 4096, 0, b'q' * 4096),
        ('req', CMD_STATUS, 0, 4 * MIB),
        ('req', CMD_ZEROES, 0, 65536),
        ('req', CMD_STATUS, 0, 4 * MIB),
        ('req', CMD_TRIM, MIB, 65536),
        ('req', CMD_STATUS, 0, 4 * MIB),
        ('req', CMD_READ, MIB, 16),
        structured=True,
        contexts=[ALLOC, DEPTH],
    ),
    marked('bitmap-fine', NAMED + 'fine'),
    marked('bitmap-coarse', NAMED + 'coarse'),
    marked('bitmaps', NAMED + 'off', ALLOC, NAMED + 'elsewhere', NAMED + 'coarse', NAMED + 'fine'),
    nbd(
        'bitmap-of-qcow2',
        bitmap('add', 'b', 'top', granularity=4096),
        bitmap('add', 'default', 'top'),
        qmp(
            'block-export-add',
            type='nbd',
            id='m',
            name='m',
            node_name='top',
            writable=True,
            bitmaps=['b', 'default'],
        ),
        ('flags', 3),
        ('opt', OPT_STRUCTURED, b''),
        ('opt', OPT_SET_META, meta_payload('m', NAMED + 'b', NAMED + 'default')),
        ('opt', OPT_GO, info_payload('m', *INFOS)),
        *MARKS,
        ('req', CMD_TRIM, 0, 4 * MIB),
        ('req', CMD_STATUS, 0, 4 * MIB),
    ),
    marked('bitmaps-wildcards', 'qemu:', NAMED),
    marked('bitmaps-extended', NAMED + 'fine', ALLOC, extended=True),
    nbd(
        'bitmaps-listed',
        *MARKED,
        ('flags', 3),
        ('opt', OPT_LIST_META, meta_payload('m')),
        *[
            ('opt', OPT_LIST_META, meta_payload('m', query))
            for query in (
                'qemu:',
                NAMED,
                NAMED + 'fine',
                NAMED + 'fin',
                NAMED + 'fine2',
                'qemu:dirty-bitmap',
                'qemu:allocation-depth',
                'base:',
                'x:',
                '',
            )
        ],
        ('opt', OPT_STRUCTURED, b''),
        *[
            ('opt', OPT_SET_META, meta_payload('m', *queries))
            for queries in (('qemu:',), (NAMED,), (NAMED + 'fine', NAMED + 'fine'), (NAMED + 'off', ALLOC), ())
        ],
        ('opt', OPT_LIST, b''),
    ),
    nbd(
        'bitmaps-twice',
        bitmap('add', 'a'),
        qmp('block-export-add', type='nbd', id='m', name='m', node_name='null', writable=True, bitmaps=['a', 'a']),
        ('flags', 3),
        ('opt', OPT_STRUCTURED, b''),
        ('opt', OPT_LIST_META, meta_payload('m', NAMED)),
        ('opt', OPT_SET_META, meta_payload('m', NAMED + 'a')),
        NODES,
        qmp('block-export-del', id='m'),
        NODES,
        bitmap('remove', 'a'),
    ),
]
