# SPDX-License-Identifier: Apache-2.0
"""Clients of a vhost-user-blk export come one after the other, vanish, and are disconnected when the export goes."""

import os

import pytest

from lib.vhostuser import IN, Closed, Guest, Msg, Request, Wire, export, readable

pytestmark = pytest.mark.sanitize
NULL = ('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on')
SLOW = ('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on,latency-ns=300000000')


def test_a_second_client_waits(daemon, tmp):
    daemon(*NULL, *export(tmp / 's'))
    first, second = Guest(tmp / 's'), Wire(tmp / 's')
    second.send(Msg.GET_FEATURES)
    for _ in range(20):
        first.read(0, 512)
        first.wire.sync()
    assert not readable(0, second)
    first.close()
    assert second.receive().request == Msg.GET_FEATURES


def test_clients_come_and_go(daemon, tmp):
    daemon(*NULL, *export(tmp / 's'))
    for _ in range(30):
        Wire(tmp / 's').close()
        with Guest(tmp / 's') as guest:
            assert guest.read(0, 512) == bytes(512)


@pytest.mark.better
def test_vanishing_with_requests_in_flight(daemon, tmp):
    """The reference crashes now and then."""
    served = daemon(*SLOW, *export(tmp / 's', writable='on'))
    for _ in range(3):
        guest = Guest(tmp / 's')
        for i in range(20):
            guest.submit(Request(IN, i, in_bytes=512))
        guest.close()
    with Guest(tmp / 's') as guest:
        assert guest.read(0, 512) == bytes(512)
    assert len(served.cmd('query-block-exports')) == 1


def test_the_export_can_be_removed_under_its_client(daemon, tmp):
    served = daemon(*SLOW, *export(tmp / 's'))
    with Guest(tmp / 's') as guest:
        for i in range(20):
            guest.submit(Request(IN, i, in_bytes=512))
        served.cmd('block-export-del', id='e')
        assert guest.wire.at_eof()
        served.qmp.wait_event('BLOCK_EXPORT_DELETED', id='e')
    assert served.cmd('query-block-exports') == []
    served.cmd('blockdev-del', node_name='n')


def test_the_waiting_client_is_turned_away_then(daemon, tmp):
    served = daemon(*NULL, *export(tmp / 's'))
    with Guest(tmp / 's'), Wire(tmp / 's') as waiting:
        waiting.send(Msg.GET_FEATURES)
        served.cmd('block-export-del', id='e')
        assert waiting.at_eof()


def test_the_daemon_ends_under_its_client(daemon, tmp):
    served = daemon(*SLOW, *export(tmp / 's'))
    with Guest(tmp / 's') as guest:
        for i in range(20):
            guest.submit(Request(IN, i, in_bytes=512))
        served.quit()
        assert guest.wire.at_eof()


def test_a_client_leaves_nothing_behind(daemon, tmp):
    served = daemon(*NULL, *export(tmp / 's', num_queues=4))

    def held():
        with open(f'/proc/{served.process.pid}/maps', encoding='utf-8') as maps:
            return len(os.listdir(f'/proc/{served.process.pid}/fd')), sum('memfd:' in line for line in maps)

    with Guest(tmp / 's', queues=4) as guest:
        guest.read(0, 512)
    with Wire(tmp / 's') as wire:
        wire.sync()
        before = held()
    for _ in range(5):
        with Guest(tmp / 's', queues=4) as guest:
            for i in range(4):
                guest.read(0, 512, queue=i)
    with Wire(tmp / 's') as wire:
        wire.sync()
        assert held() == before


def test_what_a_client_sees_after_the_end(daemon, tmp):
    served = daemon(*NULL, *export(tmp / 's'))
    with Guest(tmp / 's') as guest:
        served.cmd('block-export-del', id='e')
        with pytest.raises(Closed):
            guest.read(0, 512)
