# SPDX-License-Identifier: Apache-2.0
"""The export kind vhost-user-blk: its options and its life. What clients see is in test_vhost_user_*.py."""

from differential.command_lines import EXPORTS, NULL, options
from lib.differential import Qmps, q


SOCKET = {'type': 'unix', 'path': 'v.sock'}
LIST = q('query-block-exports')
NODE = q('blockdev-add', driver='null-co', node_name='n', size=1 << 20)


def export(ident='e', addr=None, node='n', **options):
    return q(
        'block-export-add', type='vhost-user-blk', id=ident, node_name=node, addr=addr or SOCKET, **options
    )


CASES = [
    Qmps(
        'vhost-user-options',
        lines=[
            NODE,
            *(export(logical_block_size=size) for size in (1, 256, 511, 513, 1536, 4 << 20, 1 << 40, -1, '512')),
            *(export(num_queues=count) for count in (0, -1, 65536, '1')),
            export(logical_block_size=3, num_queues=0, addr={'type': 'inet', 'host': '::', 'port': '0'}),
            export(num_queues=0, addr={'type': 'inet', 'host': '::', 'port': '0'}),
            export(nope=1),
            export(name='x'),
            q('block-export-add', type='vhost-user-blk', id='e', node_name='n'),
            LIST,
        ],
    ),
    Qmps(
        'vhost-user-addresses',
        lines=[
            NODE,
            export(addr={'type': 'inet', 'host': '127.0.0.1', 'port': '0'}),
            export(addr={'type': 'vsock', 'cid': '1', 'port': '1'}),
            export(addr={'type': 'unix'}),
            export(addr={'type': 'unix', 'path': 'missing/v.sock'}),
            export(addr={'type': 'unix', 'path': 'y' * 200}),
            export(addr={'type': 'fd', 'str': '77'}),
            export(addr={'type': 'fd', 'str': 'abc'}),
            export(addr={'type': 'nope'}),
            export(addr='v.sock'),
            export(addr={'type': 'unix', 'data': {'path': 'v.sock'}}),
            LIST,
        ],
    ),
    Qmps(
        'vhost-user-life',
        lines=[
            NODE,
            export(logical_block_size=0),
            export(),
            export('f', {'type': 'unix', 'path': 'w.sock'}, logical_block_size=2 << 20, num_queues=65535),
            export('g', {'type': 'unix', 'path': 'x.sock'}, writable=True, writethrough=True, num_queues=4),
            LIST,
            q('blockdev-del', node_name='n'),
            q('block-export-del', id='e'),
            q('block-export-del', id='e'),
            q('block-export-del', id='f', mode='safe'),
            export('e', {'type': 'unix', 'path': 'w.sock'}),
            q('block-export-del', id='g', mode='hard'),
            LIST,
        ],
    ),
    Qmps(
        'vhost-user-common',
        lines=[
            NODE,
            q('blockdev-add', driver='null-co', node_name='r', read_only=True),
            export(node='r', writable=True),
            export(node='r'),
            export(node='nope'),
            export('1'),
            export('f', {'type': 'unix', 'path': 'w.sock'}, iothread='nope'),
            export('f', {'type': 'unix', 'path': 'w.sock'}, writable=True),
            export('g', {'type': 'unix', 'path': 'x.sock'}, writable=True),
            LIST,
        ],
    ),
    *options(
        'cli-vhost-user',
        '--export',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock',
        'type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,writable=on',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,num-queues=4,logical-block-size=4096',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,logical-block-size=4k',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,logical-block-size=1k5',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,logical-block-size=256',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,num-queues=0',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,num-queues=x',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,num-queues=65536',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,writable=x',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock,nope=1',
        'vhost-user-blk,id=e,node-name=n,addr.type=unix',
        'vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str=99',
        'vhost-user-blk,id=e,node-name=n,addr.type=inet,addr.host=::,addr.port=0',
        'vhost-user-blk,id=e,node-name=n,addr.path=v.sock',
        'vhost-user-blk,id=e,node-name=n',
        '{"type":"vhost-user-blk","id":"e","node-name":"n","addr":{"type":"unix","path":"v.sock"}}',
        'vhost-user-blk,help',
        front=NULL,
        then=[EXPORTS],
    ),
]
