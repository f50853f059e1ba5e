# SPDX-License-Identifier: Apache-2.0
"""Options of a vhost-user-blk export and their errors; the life of its socket file."""

import os
import socket
import stat

import pytest

from lib.program import StartError
from lib.qmp import QmpError
from lib.vhostuser import Guest, Wire, export
from lib.virtqueue import Memory

NULL = ('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on')


@pytest.fixture
def served(daemon):
    return daemon(*NULL, '--object', 'iothread,id=t')


def add(served, path, **changes):
    """Adds an export with these options; None leaves one out."""
    options = {
        'type': 'vhost-user-blk',
        'id': 'e',
        'node_name': 'n',
        'addr': {'type': 'unix', 'path': str(path)},
    }
    options |= changes
    served.cmd('block-export-add', **{key: value for key, value in options.items() if value is not None})


def remove(served):
    served.unexport('e')


BLOCK_SIZE_TEXT = 'must be a power of 2 between 512 and 2097152'


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'addr': None}, "Parameter 'addr' is missing"),
        (
            {'addr': {'type': 'inet', 'host': 'h', 'port': '1'}},
            "Only socket address types 'unix' and 'fd' are supported",
        ),
        (
            {'addr': {'type': 'vsock', 'cid': '1', 'port': '1'}},
            "Only socket address types 'unix' and 'fd' are supported",
        ),
        ({'addr': {'type': 'unix', 'path': '/nonexistent/x'}}, 'No such file or directory'),
        ({'addr': {'type': 'unix', 'path': 'x' * 120}}, 'is too long'),
        *(
            ({'logical_block_size': size}, BLOCK_SIZE_TEXT)
            for size in (1, 256, 511, 513, 1000, 4 << 20, -1, 1 << 32)
        ),
        ({'num_queues': 0}, 'num-queues must be greater than 0'),
        ({'num_queues': 65536}, "Parameter 'num-queues' expects uint16_t"),
        ({'node_name': 'missing'}, "node-name='missing'"),
        ({'iothread': 'missing'}, 'iothread "missing" not found'),
    ],
    ids=lambda value: ','.join(f'{k}={str(v)[:40]}' for k, v in value.items())
    if isinstance(value, dict)
    else '',
)
def test_refused(changes, text, served, tmp):
    with pytest.raises(QmpError) as raised:
        add(served, tmp / 's', **changes)
    assert text in raised.value.desc
    assert served.cmd('query-block-exports') == []
    assert not (tmp / 's').exists()


@pytest.mark.better
@pytest.mark.parametrize('serial', ['x' * 21, 'x' * 4000])
def test_a_serial_has_20_bytes_at_most(serial, served, tmp):
    with pytest.raises(QmpError, match='serial'):
        add(served, tmp / 's', serial=serial)


def test_the_same_error_on_the_command_line(daemon, tmp):
    with pytest.raises(StartError) as raised:
        daemon(*NULL, *export(tmp / 's', num_queues=0))
    assert 'num-queues must be greater than 0' in raised.value.stderr


@pytest.mark.parametrize('size', [512, 4096, 2 << 20])
def test_block_size(size, served, tmp):
    add(served, tmp / 's', logical_block_size=size)
    with Guest(tmp / 's') as guest:
        assert guest.wire.config()['blk_size'] == size


def test_listed_like_any_export(served, tmp):
    add(served, tmp / 's')
    assert served.cmd('query-block-exports') == [
        {'id': 'e', 'type': 'vhost-user-blk', 'node-name': 'n', 'shutting-down': False}
    ]
    with pytest.raises(QmpError, match="'e' is already in use"):
        add(served, tmp / 's2')


def test_a_passed_socket(daemon, tmp):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp / 's'))
        listener.listen()
        daemon(
            *NULL,
            '--export',
            f'vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str={listener.fileno()}',
            pass_fds=[listener.fileno()],
        )
        with Guest(tmp / 's') as guest:
            assert guest.read(0, 512) == bytes(512)


def test_the_socket_file_comes_and_goes_with_the_export(served, tmp):
    add(served, tmp / 's')
    assert stat.S_ISSOCK(os.stat(tmp / 's').st_mode)
    remove(served)
    assert not (tmp / 's').exists()


def test_the_socket_file_goes_with_the_daemon(daemon, tmp):
    served = daemon(*NULL, *export(tmp / 's'))
    assert (tmp / 's').exists()
    served.quit()
    assert not (tmp / 's').exists()


def test_the_socket_of_a_dead_daemon_is_replaced(daemon, tmp):
    daemon(*NULL, *export(tmp / 's')).kill()
    assert (tmp / 's').exists()
    daemon(*NULL, *export(tmp / 's'))
    with Guest(tmp / 's') as guest:
        assert guest.read(0, 512) == bytes(512)


@pytest.mark.sanitize
@pytest.mark.parametrize('queues', [1, 2, 16, 200])
def test_every_queue_works(queues, served, tmp):
    add(served, tmp / 's', num_queues=queues, writable=True)
    with Guest(tmp / 's', queues=queues, size=4, memory=Memory.plain(32 << 20)) as guest:
        assert guest.wire.config()['num_queues'] == queues
        for i in range(queues):
            assert guest.read(i, 512, queue=i) == bytes(512)


def test_in_an_iothread(served, tmp):
    add(served, tmp / 's', iothread='t')
    with Guest(tmp / 's') as guest:
        assert guest.read(0, 4096) == bytes(4096)
    remove(served)


@pytest.mark.better
def test_the_thread_stays_as_long_as_the_export(served, tmp):
    """Even if its object goes; the reference's guests wait for ever then."""
    add(served, tmp / 's', iothread='t')
    with Guest(tmp / 's') as guest:
        served.cmd('object-del', id='t')
        assert guest.read(0, 4096) == bytes(4096)
    remove(served)


def test_many_exports_of_one_node(served, tmp):
    for i in range(8):
        add(served, tmp / f's{i}', id=f'e{i}')
    guests = [Guest(tmp / f's{i}', size=4) for i in range(8)]
    for guest in guests:
        assert guest.read(0, 512) == bytes(512)
        guest.close()
    with Wire(tmp / 's0') as wire:
        assert wire.sync()


@pytest.mark.better
def test_the_serial_is_what_the_guest_reads(served, tmp):
    add(served, tmp / 's', serial='disk-0123456789abcde')
    with Guest(tmp / 's') as guest:
        assert guest.serial() == b'disk-0123456789abcde'


def test_the_serial_without_the_option(served, tmp):
    add(served, tmp / 's')
    with Guest(tmp / 's') as guest:
        assert guest.serial() == b'vhost_user_blk'
