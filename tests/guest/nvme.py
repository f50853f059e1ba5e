#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Reservations of an NVMe namespace: two hosts over nvmet-tcp; the helper uses the kernel's PR ioctls."""

import ctypes
import fcntl
import glob
import os
import pathlib
import struct

import lab as machine
from lab import check, main, modprobe, read, run, wait, write
from pr import (
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_MOVE,
    REPORT_CAPABILITIES,
    Helper,
    can_read,
    can_write,
    check_each_type,
    conflict,
    good,
    prwire,
    sense,
)

NVMET = pathlib.Path('/sys/kernel/config/nvmet')
SUBSYSTEM = 'nqn.2026-01.lab:disk'
HOSTS = ('11111111-1111-4111-8111-111111111111', '22222222-2222-4222-8222-222222222222')
KX, KY = 0x0123456789ABCDEF, 0xFEDCBA9876543210


def make_target():
    modprobe('configfs', 'loop', 'nvmet', 'nvmet-tcp', 'nvme-tcp')
    if not os.path.ismount('/sys/kernel/config'):
        run('mount', '-t', 'configfs', 'configfs', '/sys/kernel/config')
    with open('/run/namespace.img', 'wb') as file:
        file.truncate(16 << 20)
    run('losetup', '/dev/loop1', '/run/namespace.img')
    subsystem = NVMET / 'subsystems' / SUBSYSTEM
    subsystem.mkdir()
    write(subsystem / 'attr_allow_any_host', 1)
    namespace = subsystem / 'namespaces/1'
    namespace.mkdir()
    write(namespace / 'device_path', '/dev/loop1')
    write(namespace / 'resv_enable', 1)
    write(namespace / 'enable', 1)
    port = NVMET / 'ports/1'
    port.mkdir()
    for name, value in (
        ('addr_trtype', 'tcp'),
        ('addr_adrfam', 'ipv4'),
        ('addr_traddr', '127.0.0.1'),
        ('addr_trsvcid', '4420'),
    ):
        write(port / name, value)
    (port / 'subsystems' / SUBSYSTEM).symlink_to(subsystem)


def connect(number):
    """One more host; returns its namespace."""
    known = set(glob.glob('/dev/nvme*n*'))
    options = f'transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn={SUBSYSTEM},hostid={HOSTS[number]}'
    with open('/dev/nvme-fabrics', 'r+b', buffering=0) as file:
        file.write(
            f'{options},hostnqn=nqn.2014-08.org.nvmexpress:uuid:{HOSTS[number]},nr_io_queues=1'.encode()
        )
    return wait(lambda: set(glob.glob('/dev/nvme*n1')) - known, 'no namespace', 20).pop()


# Two hosts of one machine: with multipath the second one would be a path of the same disk.
run('modprobe', 'nvme-core', 'multipath=N')
make_target()
X, Y = connect(0), connect(1)
machine.say(X, Y, read('/sys/module/nvme_core/parameters/multipath'))
helper = Helper()
x, y = helper.client(X), helper.client(Y)


def passthrough(disk, opcode, cdw10, cdw11=0, data=b'', read=0):
    """An NVMe command straight to the namespace: (status, data)."""
    buffer = ctypes.create_string_buffer(data or bytes(read), len(data) or read)
    command = struct.pack(
        '<BBHIIIQQII6III',
        opcode,
        0,
        0,
        1,
        0,
        0,
        0,
        ctypes.addressof(buffer),
        0,
        len(buffer),
        cdw10,
        cdw11,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    fd = os.open(disk, os.O_RDWR)
    try:
        return fcntl.ioctl(fd, 0xC0484E43, bytearray(command)), buffer.raw
    finally:
        os.close(fd)


def report(disk=X):
    """What the controller itself says: ({key: holds}, type)."""
    status, data = passthrough(disk, 0x0E, 1023, 1, read=4096)  # Reservation Report, extended
    assert status == 0, f'status {status:#x}'
    kind, count = struct.unpack_from('<4xBH', data)
    entries = [struct.unpack_from('<2xB5xQ', data, 64 + 64 * n) for n in range(count)]
    return {key: flags & 1 for flags, key in entries}, kind


def fresh():
    for disk in (X, Y):
        passthrough(disk, 0x0D, 1 | 1 << 3, data=bytes(16))  # unregister whatever key there is
    assert report() == ({}, 0), report()


def both_register():
    good(x.register(KX))
    good(y.register(KY))


@check
def nothing_is_registered_at_first():
    assert x.keys()[1] == [] and x.reservation() is None


@check
def capabilities():
    length, flags1, flags2, mask = struct.unpack('>HBBH2x', good(x.input(REPORT_CAPABILITIES)).payload)
    assert length == 8 and flags2 & 0x80 and mask == 0xEA01, (length, flags1, flags2, mask)
    assert not flags1 & 0x0C, 'neither SPEC_I_PT nor ALL_TG_PT can be expressed'


@check
def register_is_seen_by_the_other_host():
    good(x.register(KX))
    assert y.keys()[1] == [KX] and report()[0] == {KX: 0}
    good(y.register(KY))
    assert x.keys()[1] == sorted((KX, KY))


@check
def register_with_the_wrong_key_conflicts():
    good(x.register(KX))
    conflict(x.register(7, key=8))
    assert y.keys()[1] == [KX]


@check
def register_changes_a_key():
    good(x.register(KX))
    good(x.register(KY, key=KX))
    assert y.keys()[1] == [KY]
    good(x.register_and_ignore(KX))
    assert y.keys()[1] == [KX]


@check
def unregister_leaves_no_registrant():
    both_register()
    good(x.register(0, key=KX))
    assert x.keys()[1] == [KY] and report()[0] == {KY: 0}, report()
    good(y.register_and_ignore(0))
    assert x.keys()[1] == [] and report()[0] == {}, report()


@check
def unregister_with_the_wrong_key_conflicts():
    both_register()
    conflict(x.register(0, key=KY + 1))
    assert x.keys()[1] == sorted((KX, KY))


def reserve_type(kind):
    good(x.register(KX))
    good(x.reserve(KX, kind))
    found = y.reservation()
    assert found and found[1] == kind and found[0] == (KX if kind < 7 else 0), found
    assert report()[1] == {1: 1, 3: 2, 5: 3, 6: 4, 7: 5, 8: 6}[kind]
    assert can_write(X)
    exclusive, registrants = kind in (3, 6, 8), kind >= 5
    assert (can_read(Y), can_write(Y)) == (not exclusive, False)
    good(y.register(KY))
    assert (can_read(Y), can_write(Y)) == ((True, True) if registrants else (not exclusive, False))
    conflict(y.reserve(KY, 1 if kind != 1 else 3))
    good(x.release(KX, kind))
    assert x.reservation() is None and can_write(Y)


check_each_type(reserve_type)


@check
def reserve_without_a_registration_conflicts():
    conflict(x.reserve(KX, 1))
    good(x.register(KX))
    conflict(x.reserve(KY, 1))
    assert x.reservation() is None


@check
def preempt_takes_the_reservation():
    both_register()
    good(x.reserve(KX, 3))
    assert not can_write(Y)
    good(y.preempt(KY, KX, 1))
    assert y.reservation() == (KY, 1) and y.keys()[1] == [KY]
    assert not can_write(X) and can_write(Y)


@check
def preempt_and_abort():
    both_register()
    good(x.reserve(KX, 1))
    good(y.preempt(KY, KX, 1, abort=True))
    assert y.reservation() == (KY, 1) and y.keys()[1] == [KY]


@check
def clear_takes_everything():
    both_register()
    good(x.reserve(KX, 1))
    good(y.clear(KY))
    assert x.keys()[1] == [] and x.reservation() is None and report() == ({}, 0)


@check
def what_the_kernel_cannot_express():
    good(x.register(KX))
    sense(x.input(READ_FULL_STATUS), 5, 0x24, 0)
    assert x.input(4).check()[0] == 5
    identifier = bytes([5, 0, 0, 4]) + b'iqn\0'
    for reply in (
        x.output(REGISTER_AND_MOVE, parameters=prwire.move_list(KX, KY, 1, identifier)),
        x.output(REGISTER, parameters=prwire.out_list(KX, KX, flags=8) + struct.pack('>I', 8) + identifier),
        x.output(REGISTER, KX, KY, flags=4),
        x.output(8, KX),
        x.reserve(KX, 2),
    ):
        assert reply.check() and reply.check()[0] == 5, reply
    assert y.keys()[1] == [KX] and x.reservation() is None


@check
def short_allocations_cut_the_data():
    both_register()
    for action in (READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES):
        whole = good(x.input(action)).payload
        for allocation in (8, 12, 16, 4096):
            assert good(x.input(action, allocation)).payload == whole[:allocation]


@check
def a_descriptor_for_reading_reads_only():
    good(x.register(KX))
    with helper.client(X, os.O_RDONLY) as reader:
        assert reader.keys()[1] == [KX]
        sense(reader.register_and_ignore(0), 5, 0x20, 0)
    assert y.keys()[1] == [KX]


@check
def cleanup_does_nothing():
    good(x.register(KX))
    good(x.connection.command(prwire.CLEANUP_CDB, x.fd))
    assert y.keys()[1] == [KX]


@check
def the_controller_is_refused():
    with helper.client(X[: X.rindex('n')]) as client:
        assert client.input(READ_KEYS).check()[0] == 5


main(before_each=fresh)
