# SPDX-License-Identifier: Apache-2.0
"""Reservation managers, as far as they go without a helper; with one: tests/test_pr_manager.py."""

from lib.differential import Allowed, Cli, Qmps, q

from .allowed import expected


def manager(ident, **properties):
    return q('object-add', qom_type='pr-manager-helper', id=ident, **properties)


def node(driver, ident, filename, pr_manager):
    return q('blockdev-add', driver=driver, node_name=ident, filename=filename, pr_manager=pr_manager)


CASES = [
    Qmps(
        'pr-manager-helper',
        lines=[
            manager('p'),
            manager('p', path=5),
            manager('p', path='missing.sock'),
            manager('p', path='missing/folder.sock'),
            manager('p', path='raw.img'),
            manager('p', path='raw.img/x.sock'),
            manager('p', path='.'),
            manager('p', path='x' * 107),
            manager('p', path='x' * 109),
            manager('p', path='x' * 5000),
            manager('p', path='missing.sock', nope=1),
            manager('p', nope=1),
            manager('1p', path='missing.sock'),
            q('object-add', qom_type='pr-manager', id='p', path='missing.sock'),
            q('object-del', id='p'),
            q('qom-list', path='/objects'),
            q('qom-list-properties', typename='pr-manager-helper'),
            q('qom-list-properties', typename='pr-manager'),
        ],
    ),
    Qmps('pr-manager-empty-path', lines=[manager('p', path='')]),
    Qmps(
        'pr-manager-of-node',
        lines=[
            q('object-add', qom_type='iothread', id='t'),
            node('file', 'a', 'raw.img', 'missing'),
            node('file', 'b', 'raw.img', 't'),
            node('file', 'c', 'raw.img', ''),
            node('file', 'd', 'raw.img', 5),
            node('file', 'e', 'raw.img', '/objects/t'),
            node('file', 'f', 'missing.img', 'missing'),
            node('file', 'g', '', 'missing'),
            node('host_device', 'h', '/dev/null', 'missing'),
            node('host_device', 'i', '/dev/null', 't'),
            node('host_device', 'j', 'raw.img', 'missing'),
            q('blockdev-add', driver='null-co', node_name='k', pr_manager='missing'),
            q('blockdev-add', driver='raw', node_name='l', pr_manager='missing', file='a'),
            q(
                'blockdev-add',
                driver='raw',
                node_name='m',
                file={'driver': 'file', 'filename': 'raw.img', 'pr-manager': 'missing'},
            ),
            q('query-named-block-nodes'),
        ],
        v10=True,
    ),
    Qmps('pr-managers', lines=[q('query-pr-managers')]),
    *[
        Cli(f'cli-pr-manager-{i}', args)
        for i, args in enumerate(
            [
                ['--object', 'pr-manager-helper,id=p'],
                ['--object', 'pr-manager-helper,id=p,path=missing.sock'],
                ['--object', 'pr-manager-helper,path=missing.sock'],
                ['--object', '{"qom-type": "pr-manager-helper", "id": "p", "path": "missing.sock"}'],
                ['--blockdev', 'file,node-name=f,filename=raw.img,pr-manager=missing'],
                ['--blockdev', 'host_device,node-name=f,filename=/dev/null,pr-manager=missing'],
            ]
        )
    ],
]

ALLOWED = [
    Allowed(
        'pr-manager-empty-path',
        'The reference connects to a name that the kernel makes up; ours says that an empty one is none.',
        expected(1, "'': Invalid argument", "'': Connection refused"),
    ),
    Allowed(
        'pr-managers',
        "The reference has this command only in its emulator; there is no other way to see the state.",
        expected(1, '"return": []', 'The command query-pr-managers has not been found'),
    ),
]
