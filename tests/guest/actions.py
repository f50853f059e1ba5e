#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every service action of PERSISTENT RESERVE IN and OUT over two nexuses of one LUN, and what they fence."""

import os
import struct

from lab import check, lab, main, run
from pr import (
    EBADE,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_MOVE,
    REPORT_CAPABILITIES,
    TYPES,
    Helper,
    attention,
    can_read,
    can_write,
    check_each_type,
    conflict,
    dd_writes,
    fenced,
    good,
    keys_of,
    prwire,
    reset,
    sense,
)

LUN = lab.luns[0]
X, Y = LUN.x, LUN.y
KX, KY = 0x0123456789ABCDEF, 0xFEDCBA9876543210
helper = Helper('-q')
x, y = helper.client(X.disk), helper.client(Y.disk)


def both_register():
    good(x.register(KX))
    good(y.register(KY))


@check
def capabilities():
    payload = good(x.input(REPORT_CAPABILITIES)).payload
    length, flags1, flags2, mask = struct.unpack('>HBBH2x', payload)
    assert length == 8, payload.hex()
    assert flags1 & 1, 'PTPL_C: keys that survive power loss'
    assert flags1 & 8 and flags1 & 4, f'SIP_C and ATP_C: {flags1:#x}'
    assert flags2 & 0x80, 'TMV: the mask is valid'
    assert mask & 0xEA01 == 0xEA01, f'the six types: {mask:#x}'


@check
def nothing_is_registered_at_first():
    _, keys = x.keys()
    assert keys == [] and x.reservation() is None and x.full_status() == []


@check
def register_is_seen_by_the_other_nexus():
    before, _ = y.keys()
    good(x.register(KX))
    after, keys = y.keys()
    assert keys == [KX] and after == before + 1, (before, after, keys)
    assert keys_of(Y.disk) == [KX]
    text = run('sg_persist', '--in', '--read-keys', Y.disk).stdout
    assert f'{KX:#x}' in text and '1 registered reservation key' in text, text


@check
def register_with_the_wrong_key_conflicts():
    good(x.register(KX))
    conflict(x.register(7, key=8))
    conflict(x.register(7))
    conflict(y.register(7, key=KX))
    assert x.keys()[1] == [KX]


@check
def register_changes_and_removes_a_key():
    good(x.register(KX))
    good(x.register(KY, key=KX))
    assert y.keys()[1] == [KY]
    good(x.register(0, key=KY))
    assert y.keys()[1] == []


@check
def register_and_ignore_existing_key():
    good(x.register_and_ignore(KX))
    good(x.register_and_ignore(KY))
    assert y.keys()[1] == [KY]
    good(x.register_and_ignore(0))
    assert y.keys()[1] == []


@check
def the_same_key_on_both_nexuses():
    good(x.register(KX))
    good(y.register(KX))
    assert x.keys()[1] == [KX, KX]


def reserve_type(kind):
    """Reserves, looks at what the other nexus may do before and after it registers, releases."""
    good(x.register(KX))
    good(x.reserve(KX, kind))
    assert y.reservation() == ((KX, kind) if kind < 7 else (0, kind))
    assert fenced(X.disk) == (True, True), 'the holder'
    exclusive, registrants = kind in (3, 6, 8), kind >= 5
    assert fenced(Y.disk) == (not exclusive, False), f'not registered: {fenced(Y.disk)}'
    assert dd_writes(Y.disk) is False and dd_writes(X.disk) is True
    good(y.register(KY))
    expected = (True, True) if registrants else (not exclusive, False)
    assert fenced(Y.disk) == expected, f'registered: {fenced(Y.disk)}'
    other = 1 if kind != 1 else 3
    conflict(y.reserve(KY, other))
    # All registrants hold a reservation of these types.
    (good if kind >= 7 else conflict)(y.reserve(KY, kind))
    text = run('sg_persist', '--in', '--read-reservation', Y.disk).stdout.lower()
    assert TYPES[kind] in text, text
    good(x.release(KX, kind))
    if registrants:
        attention(y, 0x04)  # RESERVATIONS RELEASED
    assert x.reservation() is None
    assert fenced(Y.disk) == (True, True)


check_each_type(reserve_type)


@check
def reserve_needs_a_registration_and_its_key():
    sense(x.reserve(KX, 1), 2, 0x08, 0)  # in the words of this target
    good(x.register(KX))
    conflict(x.reserve(KY, 1))
    assert x.reservation() is None
    good(x.reserve(KX, 1))
    good(x.reserve(KX, 1))  # the same again changes nothing
    assert y.reservation() == (KX, 1)
    conflict(x.reserve(KX, 3))
    assert y.reservation() == (KX, 1)


@check
def release_by_others_does_nothing():
    both_register()
    good(x.reserve(KX, 5))
    good(y.release(KY, 5))
    assert y.reservation() == (KX, 5)
    conflict(x.release(KX, 1))  # not the type that was reserved
    assert y.reservation() == (KX, 5)
    good(x.release(KX, 5))
    attention(y, 0x04)
    good(x.release(KX, 5))


@check
def unregistering_the_holder_ends_the_reservation():
    both_register()
    good(x.reserve(KX, 5))
    good(x.register(0, key=KX))
    attention(y, 0x04)
    assert y.reservation() is None and y.keys()[1] == [KY]


@check
def clear_takes_everything():
    both_register()
    good(x.reserve(KX, 3))
    conflict(y.clear(KX))
    good(y.clear(KY))
    attention(x, 0x03)  # RESERVATIONS PREEMPTED
    assert x.keys()[1] == [] and x.reservation() is None
    assert fenced(X.disk) == (True, True)


@check
def preempt_takes_the_reservation():
    both_register()
    good(x.reserve(KX, 3))
    assert can_write(Y.disk) is False
    conflict(y.preempt(KX, KX, 1))
    good(y.preempt(KY, KX, 1))
    attention(x, 0x05)  # REGISTRATIONS PREEMPTED
    assert x.keys()[1] == [KY] and x.reservation() == (KY, 1)
    assert fenced(X.disk) == (True, False) and fenced(Y.disk) == (True, True)


@check
def preempt_without_a_reservation_removes_the_key():
    both_register()
    good(y.preempt(KY, KX, 1))
    attention(x, 0x05)
    assert x.keys()[1] == [KY] and x.reservation() is None


@check
def preempt_of_a_key_that_nobody_has_conflicts():
    both_register()
    good(x.reserve(KX, 1))
    conflict(y.preempt(KY, 0x4711, 1))
    assert x.keys()[1] == sorted((KX, KY)) and x.reservation() == (KX, 1)


@check
def full_status():
    both_register()
    good(x.reserve(KX, 5))
    found = sorted(x.full_status())
    assert [entry[:4] for entry in found] == [(KX, True, 5, 1), (KY, False, 0, 2)], found
    for number, entry in enumerate(found, start=1):
        transport_id = entry[4]
        assert transport_id[0] & 15 == 6 and len(transport_id) == 24, transport_id.hex()  # SAS
        assert transport_id[4:12].hex() == f'6001405bbbbbbbb{number}', transport_id.hex()


@check
def full_status_of_all_registrants():
    both_register()
    good(x.reserve(KX, 7))
    assert [entry[:3] for entry in sorted(y.full_status())] == [(KX, True, 7), (KY, True, 7)]


def transport_id(number):
    return bytes([6, 0, 0, 0]) + bytes.fromhex(f'6001405bbbbbbbb{number}') + bytes(12)


@check
def register_and_move():
    both_register()
    good(x.reserve(KX, 1))
    conflict(y.output(REGISTER_AND_MOVE, parameters=prwire.move_list(KY, KX, 1, transport_id(1))))
    good(x.output(REGISTER_AND_MOVE, parameters=prwire.move_list(KX, 0x77, 2, transport_id(2))))
    assert y.reservation() == (0x77, 1), y.reservation()
    assert x.keys()[1] == sorted((KX, 0x77))
    assert can_write(X.disk) is False and can_write(Y.disk) is True


@check
def register_and_move_and_unregister():
    both_register()
    good(x.reserve(KX, 3))
    good(
        x.output(
            REGISTER_AND_MOVE, parameters=prwire.move_list(KX, 0x78, 2, transport_id(2), unregister=True)
        )
    )
    assert (y.keys()[1], y.reservation()) == ([0x78], (0x78, 3)), (y.keys(), y.reservation(), y.full_status())
    assert fenced(X.disk) == (False, False)


@check
def register_for_other_initiators():
    """SPEC_I_PT: the parameter list is longer and names another initiator port."""
    identifiers = transport_id(2)
    good(x.output(REGISTER, parameters=prwire.out_list(0, KX, flags=8) + struct.pack('>I', 24) + identifiers))
    found = sorted(y.full_status(), key=lambda entry: entry[3])
    assert [entry[:4] for entry in found] == [(KX, False, 0, 1), (KX, False, 0, 2)], found
    assert [entry[4] for entry in found] == [transport_id(1), transport_id(2)]
    good(y.reserve(KX, 1))
    unknown = prwire.out_list(KX, KX, flags=8) + struct.pack('>I', 24) + transport_id(3)
    assert x.output(REGISTER, parameters=unknown).check()[0] == 5
    assert x.keys()[1] == [KX, KX] and x.reservation() == (KX, 1)


@check
def register_on_all_target_ports():
    good(x.register(KX, flags=4))  # ALL_TG_PT: this initiator exists on one port
    assert KX in y.keys()[1]


@check
def keys_survive_power_loss_where_asked_for():
    good(x.register(KX, flags=1))  # APTPL
    payload = good(x.input(REPORT_CAPABILITIES)).payload
    assert payload[3] & 1, f'PTPL_A: {payload.hex()}'
    good(x.register_and_ignore(KX))
    assert not good(x.input(REPORT_CAPABILITIES)).payload[3] & 1


@check
def short_allocations_cut_the_data():
    both_register()
    whole = good(x.input(READ_KEYS)).payload
    assert len(whole) == 24
    for allocation in (8, 16, 24, 25, 4096):  # the target does not cut a key
        assert good(x.input(READ_KEYS, allocation)).payload == whole[:allocation], allocation
    assert len(good(x.input(READ_FULL_STATUS, 8)).payload) == 8
    for action in (READ_RESERVATION, REPORT_CAPABILITIES):
        cut, whole = good(x.input(action, 8)).payload, good(x.input(action)).payload
        assert cut == whole[:8], (action, cut.hex(), whole.hex())
    sense(x.input(READ_KEYS, 0), 5, 0x24, 0)


@check
def reserved_actions_and_bad_lists_are_the_target_s_to_refuse():
    sense(x.input(4), 5, 0x24, 0)
    sense(x.input(31), 5, 0x24, 0)
    for length in (0, 8, 23, 25):
        assert x.output(REGISTER, parameters=bytes(length)).check() is not None, length
    good(x.register(KX))
    assert x.reserve(KX, 2).status != 0, 'a reserved type'
    assert x.output(8, KX).check() is not None, 'REPLACE LOST RESERVATION'
    assert x.keys()[1] == [KX] and x.reservation() is None


@check
def generic_nodes():
    with helper.client(X.sg) as gx, helper.client(Y.sg) as gy:
        good(gx.register(KX))
        good(gx.reserve(KX, 6))
        assert gy.keys()[1] == [KX] and gy.reservation() == (KX, 6)
        assert fenced(Y.disk) == (False, False)
        conflict(gy.reserve(KY, 6))
        good(gx.clear(KX))
    assert y.keys()[1] == []


@check
def a_descriptor_for_reading_reads_only():
    with helper.client(X.disk, os.O_RDONLY) as reader, helper.client(X.disk, os.O_WRONLY) as writer:
        for reply in (reader.register(KX), reader.register_and_ignore(KX), reader.clear(0)):
            sense(reply, 5, 0x20, 0)
        assert reader.keys()[1] == []
        good(writer.register(KX))
        assert writer.keys()[1] == [KX] and reader.keys()[1] == [KX]


@check
def an_offline_device():
    X.state('offline')
    try:
        sense(x.input(READ_KEYS), 0xB, 0, 6)
    finally:
        X.state('running')
    good(x.input(READ_KEYS))


@check
def errors_of_the_kernel_are_conflicts():
    # What a program sees whose writes are fenced: the errno of a reservation conflict and nothing else.
    good(x.register(KX))
    good(x.reserve(KX, 3))
    fd = os.open(Y.disk, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(fd, 4096, 1 << 20)
        raise AssertionError('a buffered read passes')
    except OSError as error:
        assert error.errno in (EBADE, 5), error
    finally:
        os.close(fd)
    assert can_read(X.disk)


main(before_each=lambda: reset(LUN))
