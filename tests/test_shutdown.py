# SPDX-License-Identifier: Apache-2.0
"""The daemon ends in order: exports first, with their events still delivered, sockets and pid file gone, status 0."""

import signal
import time

import pytest

from lib import nbdwire
from lib.daemon import monitor_at
from lib.qmp import DEADLINE, Qmp
from lib.tools import libnbd, wait_until

NULL = ('--blockdev', 'null-co,node-name=n,size=1048576')


@pytest.mark.sanitize
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it(number, daemon):
    served = daemon(*NULL, '--export', 'nbd,id=e,node-name=n', nbd=True)
    served.signal(number)
    assert [event['event'] for event in served.qmp.drain()] == ['BLOCK_EXPORT_DELETED']
    served.wait(0)
    assert served.stderr() == ''


@pytest.mark.parametrize('number', [signal.SIGPIPE, signal.SIGUSR1])
def test_signals_without_effect(number, daemon):
    served = daemon(*NULL)
    served.signal(number)
    assert served.cmd('query-block-exports') == []


def test_quit_answers_then_tells_then_closes(daemon):
    served = daemon(
        *NULL, '--export', 'nbd,id=a,node-name=n', '--export', 'nbd,id=b,node-name=n,name=b', nbd=True
    )
    ident = served.qmp.send('quit')
    assert served.qmp.reply_to(ident)['return'] == {}
    assert sorted(event['data']['id'] for event in served.qmp.drain()) == ['a', 'b']
    served.wait(0)


def test_concluded_jobs_are_dismissed_at_the_end(daemon, tmp):
    served = daemon()
    served.cmd(
        'blockdev-create', job_id='j', options={'driver': 'file', 'filename': str(tmp / 'x'), 'size': 1}
    )
    served.qmp.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded')
    served.qmp.events.clear()
    events = served.quit()
    assert [(event['event'], event['data']['status']) for event in events] == [('JOB_STATUS_CHANGE', 'null')]


@pytest.mark.better
def test_the_nbd_socket_is_removed(daemon):
    served = daemon(*NULL, nbd=True)
    assert served.nbd_path.exists()
    served.stop()
    assert not served.nbd_path.exists()


def test_the_monitor_socket_is_removed(daemon, tmp):
    served = daemon(*monitor_at(tmp / 'm'))
    assert (tmp / 'm').exists()
    served.stop()
    assert not (tmp / 'm').exists()


@pytest.mark.sanitize
def test_ends_with_clients_connected_and_requests_in_flight(daemon):
    nbd = libnbd()
    served = daemon(
        '--blockdev',
        'null-aio,node-name=n,size=1048576,latency-ns=20000000',
        '--export',
        'nbd,id=e,node-name=n,writable=on',
        nbd=True,
    )
    handles = []
    for _ in range(4):
        handle = served.connect('n')
        handles.append(handle)
        for i in range(8):
            handle.aio_pread(nbd.Buffer(4096), i * 4096)
    half = nbdwire.Wire(served.nbd_path)  # and one that never finishes its handshake
    half.greeting()
    served.stop()


def test_ends_with_a_stalled_monitor(daemon):
    """A monitor client that never reads cannot keep the daemon alive."""
    served = daemon()
    served.qmp.sock.setblocking(False)
    try:
        while True:  # until both directions are full
            served.qmp.sock.send(b'{"execute": "query-commands"}' * 100)
    except BlockingIOError:
        pass
    served.stop()


def test_signal_while_a_waiting_socket_waits_is_honoured_after_a_client_came(daemon, tmp):
    process = daemon.spawn(
        '--chardev', f'socket,id=c,path={tmp}/wait.sock,server=on,wait=on', '--monitor', 'chardev=c'
    )
    qmp = Qmp.connect(tmp / 'wait.sock')
    qmp.cmd('query-version')
    process.stop()


@pytest.mark.better
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_while_a_waiting_socket_waits(number, daemon, tmp):
    process = daemon.spawn(
        '--chardev', f'socket,id=c,path={tmp}/wait.sock,server=on,wait=on', '--monitor', 'chardev=c'
    )
    wait_until((tmp / 'wait.sock').exists, 'the waiting socket')
    process.signal(number)
    process.wait(0)
    assert not (tmp / 'wait.sock').exists()


@pytest.mark.sanitize
def test_signal_at_any_moment_of_the_start(daemon, tmp, rng):
    """Whatever the daemon is doing when the signal comes, it ends with status 0 or by the signal itself (before main)."""
    for i in range(25):
        process = daemon.spawn(
            '--pidfile',
            tmp / f'{i}.pid',
            '--object',
            'iothread,id=t',
            *NULL,
            '--nbd-server',
            f'addr.type=unix,addr.path={tmp}/{i}.sock',
            '--export',
            'nbd,id=e,node-name=n,iothread=t',
        )
        time.sleep(rng.random() * 0.03)
        process.signal()
        code = process.process.wait(DEADLINE)
        process.awaited = True
        assert code in (0, -signal.SIGTERM), process.stderr()
        if code == 0:
            assert not (tmp / f'{i}.pid').exists()


def test_export_removal_while_clients_work(daemon):
    """safe refuses while a client is connected; hard disconnects it."""
    nbd = libnbd()
    served = daemon(*NULL, '--export', 'nbd,id=e,node-name=n,writable=on', nbd=True)
    handle = served.connect('n')
    error = served.qmp.error('block-export-del', id='e')
    assert error.desc == "export 'e' still in use"
    assert handle.pread(512, 0)
    served.unexport('e', mode='hard')
    with pytest.raises(nbd.Error):
        handle.pread(512, 0)
    assert served.cmd('query-block-exports') == []


def test_server_stop_drops_clients(daemon):
    nbd = libnbd()
    served = daemon(*NULL, '--export', 'nbd,id=e,node-name=n,writable=on', nbd=True)
    handle = served.connect('n')
    served.cmd('nbd-server-stop')
    served.qmp.wait_event('BLOCK_EXPORT_DELETED', id='e')
    with pytest.raises(nbd.Error):
        handle.pread(512, 0)
