# SPDX-License-Identifier: Apache-2.0
"""What a vhost-user-blk export offers and how it negotiates; when rings begin to run."""

import struct

import pytest

from lib.vhostuser import NEED_REPLY, VERSION, F, Guest, Msg, Proto, Request, Wire, IN, export

pytestmark = pytest.mark.sanitize
NULL = ('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on')
FEATURES = (
    F.SIZE_MAX | F.SEG_MAX | F.BLK_SIZE | F.FLUSH | F.TOPOLOGY | F.CONFIG_WCE | F.MQ | F.DISCARD | F.WRITE_ZEROES
    | F.INDIRECT | F.EVENT_IDX | F.VERSION_1 | F.PROTOCOL_FEATURES | F.LOG_ALL
)  # fmt: skip
PROTOCOL_FEATURES = (
    Proto.MQ | Proto.LOG_SHMFD | Proto.REPLY_ACK | Proto.BACKEND_REQ | Proto.CONFIG
    | Proto.BACKEND_SEND_FD | Proto.CONFIGURE_MEM_SLOTS
)  # fmt: skip


@pytest.fixture
def path(daemon, tmp):
    daemon(*NULL, *export(tmp / 's', writable='on', num_queues=4))
    return tmp / 's'


def test_features(path):
    with Wire(path) as wire:
        offered = F(wire.ask(Msg.GET_FEATURES).u64())
        assert offered & FEATURES == FEATURES
        assert not offered & (F.RO | F.GEOMETRY)


def test_a_read_only_export_says_so(daemon, tmp):
    daemon(*NULL, *export(tmp / 's'))
    with Wire(tmp / 's') as wire:
        assert F(wire.ask(Msg.GET_FEATURES).u64()) & F.RO


@pytest.mark.better
def test_more_features_than_the_reference(path):
    with Wire(path) as wire:
        assert F(wire.ask(Msg.GET_FEATURES).u64()) & F.PACKED
        more = Proto.INFLIGHT_SHMFD | Proto.STATUS
        assert Proto(wire.ask(Msg.GET_PROTOCOL_FEATURES).u64()) & more == more


def test_protocol_features_come_first(path):
    """They need not be acknowledged by SET_FEATURES."""
    with Wire(path) as wire:
        assert Proto(wire.ask(Msg.GET_PROTOCOL_FEATURES).u64()) & PROTOCOL_FEATURES == PROTOCOL_FEATURES


def test_numbers(path):
    with Wire(path) as wire:
        wire.negotiate()
        assert wire.ask(Msg.GET_QUEUE_NUM).u64() == 4
        assert wire.ask(Msg.GET_MAX_MEM_SLOTS).u64() == 509


def test_messages_are_acknowledged_on_request_only(path):
    with Wire(path) as wire:
        wire.negotiate()
        wire.tell(Msg.SET_OWNER, acked=True)
        wire.tell(Msg.SET_OWNER, acked=False)
        wire.sync()  # would meet the acknowledgement


def test_replies_are_no_acknowledgements(path):
    """need_reply changes nothing for a message that has a reply of its own."""
    with Wire(path) as wire:
        wire.negotiate()
        first = wire.ask(Msg.GET_FEATURES, flags=VERSION | NEED_REPLY).u64()
        assert wire.ask(Msg.GET_QUEUE_NUM, flags=VERSION | NEED_REPLY).u64() == 4
        assert wire.sync() == first


def test_messages_may_come_in_parts_or_together(path):
    message = struct.pack('<III', Msg.GET_FEATURES, VERSION, 0)
    with Wire(path) as wire:
        for i in range(len(message)):
            wire.send_raw(message[i : i + 1])
        first = wire.receive().u64()
        wire.send_raw(message * 50)
        assert {wire.receive().u64() for _ in range(50)} == {first}


@pytest.mark.parametrize(
    'without', [Proto.REPLY_ACK, Proto.CONFIG, Proto.MQ, Proto.CONFIGURE_MEM_SLOTS, ~Proto(0)]
)
def test_every_protocol_feature_is_optional(without, path):
    with Guest(path, protocol=~int(without)) as guest:
        assert guest.read(0, 4096) == bytes(4096)


def test_without_protocol_features_rings_start_enabled(path):
    with Guest(path, start=False) as guest:
        guest.features &= ~F.PROTOCOL_FEATURES
        guest.wire.u64(Msg.SET_FEATURES, guest.features)
        guest.start(guest.queues[0])  # says no SET_VRING_ENABLE then
        assert guest.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize('indirect', [False, True])
@pytest.mark.parametrize(
    'event_idx, polling',
    [(False, False), (True, False), (False, True), pytest.param(True, True, marks=pytest.mark.better)],
)
def test_ring_features_are_optional(indirect, event_idx, polling, path):
    with Guest(path, indirect=indirect, event_idx=event_idx, polling=polling) as guest:
        for i in range(20):
            assert guest.read(i, 4096) == bytes(4096)


@pytest.mark.better
@pytest.mark.parametrize('event_idx', [False, True])
@pytest.mark.parametrize('polling', [False, True])
def test_packed_ring_features_are_optional(event_idx, polling, path):
    with Guest(path, packed=True, event_idx=event_idx, polling=polling) as guest:
        for i in range(300):
            assert guest.read(i, 512) == bytes(512)


@pytest.mark.better
def test_a_ring_starts_with_its_kick(path):
    """vhost-user.rst, "Ring states": not when its descriptors are set."""
    with Guest(path, queues=2) as guest:
        base = guest.stop(guest.queues[1])
        guest.queues[1].unread_kicks()
        request = guest.submit(Request(IN, 0, in_bytes=512), queue=1, kick=False)
        guest.queues[1].ring.publish()
        guest.start(guest.queues[1], base, kick=False)
        for _ in range(20):
            guest.read(0, 512)
        assert not request.done
        guest.queues[1].kick()
        guest.wait(request)


@pytest.mark.better
def test_a_disabled_ring_does_nothing(path):
    with Guest(path, queues=2) as guest:
        guest.read(0, 512, queue=1)
        guest.wire.state(Msg.SET_VRING_ENABLE, 1, 0)
        guest.wire.sync()
        request = guest.submit(Request(IN, 0, in_bytes=512), queue=1)
        guest.queues[1].kick()
        for _ in range(20):
            guest.read(0, 512)
        assert not request.done
        guest.wire.state(Msg.SET_VRING_ENABLE, 1, 1)
        guest.wait(request)


@pytest.mark.better
def test_a_ring_without_kicks_is_polled(path):
    """Bit 8 of SET_VRING_KICK: no descriptor, the back end polls."""
    with Guest(path, start=False) as guest:
        guest.start(guest.queues[0], kick=False)
        guest.wire.set_vring_fd(Msg.SET_VRING_KICK, 0)
        for i in range(20):
            request = guest.submit(Request(IN, i, in_bytes=512), kick=False)
            guest.queues[0].ring.publish()
            guest.wait(request)


def test_rings_may_lie_anywhere_below_their_first_index(path):
    with Guest(path, start=False, size=16) as guest:
        guest.queues[0].ring.start_at(0xFFF8)
        guest.start(guest.queues[0])
        for i in range(40):
            assert guest.read(i, 512) == bytes(512)


@pytest.mark.better
def test_the_status_is_kept(path):
    with Wire(path) as wire:
        wire.negotiate()
        assert wire.ask(Msg.GET_STATUS).u64() == 0
        for status in (1, 3, 11, 15):
            wire.u64(Msg.SET_STATUS, status)
            assert wire.ask(Msg.GET_STATUS).u64() == status


@pytest.mark.better
def test_status_0_resets_the_device(path):
    """Virtio 1.2, 2.1.2 and 2.4: no ring is processed any more, nor do requests come back, until the driver starts again."""
    with Guest(path) as guest:
        guest.read(0, 512)
        guest.wire.u64(Msg.SET_STATUS, 15)
        guest.wire.u64(Msg.SET_STATUS, 0)
        assert guest.wire.ask(Msg.GET_STATUS).u64() == 0
        guest.connect(new=False)
        assert guest.read(0, 512) == bytes(512)
