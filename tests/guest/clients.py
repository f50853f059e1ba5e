#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Many clients at once; without privileges; what is no whole disk; a helper that is killed; a wedged disk."""

import errno
import fcntl
import glob
import os
import socket
import struct
import threading
import time

from lab import Skip, check, lab, main, modprobe, patience, read, run, wait
from pr import (
    NOBODY,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REPORT_CAPABILITIES,
    Client,
    Helper,
    can_write,
    conflict,
    good,
    keys_of,
    prwire,
    reset,
    scsi,
    sense,
)

LUNS = lab.luns
X, Y = LUNS[0].x, LUNS[0].y
CLIENTS = 64
REFERENCE = lab.setting('LAB_PROGRAM', '') == 'reference'  # what it does not do is skipped
os.umask(0)
helper = Helper('-q')


def at_once(work, count=CLIENTS):
    """work(number) in that many threads that start together; the first error of any is raised."""
    errors, barrier = [], threading.Barrier(count)

    def one(number):
        try:
            barrier.wait(patience(30))
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(60))
        assert not thread.is_alive(), 'a client waits for ever'
    if errors:
        raise errors[0]


# ---- Many clients ----


def change_and_read(choose):
    """Every client registers a key of its own, four times, and reads; whatever it sees is whole."""
    clients = [helper.client(choose(number).disk) for number in range(CLIENTS)]
    before = {lun.name: Client(helper.path, lun.x.disk).keys()[0] for lun in LUNS}
    allowed = {0x1000 + number for number in range(CLIENTS)}

    def work(number):
        for _ in range(4):
            good(clients[number].register_and_ignore(0x1000 + number))
            _, keys = clients[number].keys()
            assert 1 <= len(keys) <= 2 and set(keys) <= allowed, keys
            assert clients[number].reservation() is None

    try:
        at_once(work)
        used = {}
        for number in range(CLIENTS):
            lun = next(lun for lun in LUNS if choose(number) in (lun.x, lun.y))
            used[lun.name] = used.get(lun.name, 0) + 4
        for lun in LUNS:
            with helper.client(lun.y.disk) as client:
                generation, keys = client.keys()
                # Each REGISTER AND IGNORE counts once: none is lost, none is done twice.
                assert generation == before[lun.name] + used.get(lun.name, 0), (
                    lun.name,
                    generation,
                    before,
                    used,
                )
                assert len(keys) == (2 if lun.name in used else 0), keys
    finally:
        for client in clients:
            client.close()


@check
def many_clients_on_one_lun():
    change_and_read(lambda number: (X, Y)[number % 2])


@check
def many_clients_on_several_luns():
    change_and_read(
        lambda number: (LUNS[number % len(LUNS)].x, LUNS[number % len(LUNS)].y)[number // len(LUNS) % 2]
    )


@check
def many_clients_fight_for_a_reservation():
    with helper.client(X.disk) as x, helper.client(Y.disk) as y:
        good(x.register(1))
        good(y.register(2))
    outcomes = [None] * CLIENTS

    def work(number):
        with helper.client((X, Y)[number % 2].disk) as client:
            outcomes[number] = client.reserve(1 + number % 2, 1).status

    at_once(work)
    sides = [{outcome for outcome in outcomes[side::2]} for side in (0, 1)]
    assert sorted(map(sorted, sides)) == [[0], [0x18]], f'one nexus has it, the other has a conflict: {sides}'
    with helper.client(X.disk) as x:
        assert x.reservation() == (1 + sides.index({0}), 1)
    assert (can_write(X.disk), can_write(Y.disk)) == (sides[0] == {0}, sides[1] == {0})


# ---- Without privileges ----


def as_nobody(function):
    """Runs function() as nobody without capabilities, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function()
            text = b'fine'
        except BaseException as error:
            text = f'{type(error).__name__}: {error}'.encode()
        os.write(writer, text)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, 'rb') as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    assert said == 'fine', said


@check
def a_user_with_the_socket_and_the_descriptor():
    fd, other = os.open(X.disk, os.O_RDWR), os.open(Y.disk, os.O_RDWR)

    def work():
        assert os.getuid() == NOBODY and os.geteuid() == NOBODY
        try:
            open(X.disk, 'rb')
            raise AssertionError('nobody can open the disk')
        except PermissionError:
            pass
        with Client(helper.path, fd) as x, Client(helper.path, other) as y:
            good(x.register(0xA))
            good(x.reserve(0xA, 3))
            assert y.keys()[1] == [0xA] and y.reservation() == (0xA, 3)
            good(y.register(0xB))
            conflict(y.reserve(0xB, 3))
            good(x.input(READ_FULL_STATUS))

    as_nobody(work)
    assert sorted(keys_of(X.disk)) == [0xA, 0xB]
    assert can_write(Y.disk) is False
    os.close(fd)
    os.close(other)


@check
def the_kernel_refuses_that_user():
    """Else the check above proves nothing."""
    fd = os.open(X.sg, os.O_RDWR)

    def work():
        try:
            scsi(f'/proc/self/fd/{fd}', prwire.pr_in(READ_KEYS)[:10], read=8)
        except OSError as error:
            assert error.errno in (errno.EPERM, errno.EACCES), error
        else:
            raise AssertionError('a SCSI command passes without privileges')

    as_nobody(work)
    os.close(fd)


@check
def without_permission_on_the_socket():
    with Helper('-q', *([] if REFERENCE else ['--socket-mode=600'])) as closed:
        os.chmod(closed.path, 0o600)

        def work():
            try:
                prwire.Connection(closed.path)
            except PermissionError:
                return
            raise AssertionError('nobody can connect')

        as_nobody(work)


@check
def only_users_that_are_allowed():
    if REFERENCE:
        raise Skip('an option of granary-pr-helper')
    fd = os.open(X.disk, os.O_RDWR)
    with Helper('-q', '--allow-uid=nobody', ready=False) as picky:
        wait(lambda: os.path.exists(picky.path), 'no socket')

        def work():
            with Client(picky.path, fd) as client:
                good(client.register(0xC))

        as_nobody(work)
        try:
            with Client(picky.path, fd) as client:
                reply = client.register(0xD)
            raise AssertionError(f'root is served: {reply}')
        except (prwire.Closed, ConnectionError):
            pass
    assert keys_of(X.disk) == [0xC]
    os.close(fd)


# ---- What is no whole disk ----


def refused(fd, disk):
    """Every command on this descriptor is 5/20/00, the connection lives on, the LUN knows nothing of it."""
    before = scsi(disk, prwire.pr_in(READ_KEYS)[:10], read=512)
    with Client(helper.path, fd) as client:
        for reply in (
            client.register(0xBAD),
            client.register_and_ignore(0xBAD),
            client.reserve(0xBAD, 3),
            client.clear(0xBAD),
            client.preempt(0xBAD, 1, 1),
            *(
                client.input(action)
                for action in (READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS)
            ),
        ):
            sense(reply, 5, 0x20, 0)
    assert scsi(disk, prwire.pr_in(READ_KEYS)[:10], read=512) == before, 'keys or generation have changed'
    assert can_write(disk)


def partition(nexus):
    """Makes a partition of one MiB, as an installer does, and returns its node."""
    table = bytearray(512)
    table[446:462] = struct.pack('<B3sB3sII', 0, b'\0\0\0', 0x83, b'\0\0\0', 2048, 2048)
    table[510:] = b'\x55\xaa'
    with open(nexus.disk, 'r+b', buffering=0) as disk:
        disk.write(table)
        fcntl.ioctl(disk, 0x125F)  # BLKRRPART
    return wait(lambda: os.path.exists(f'{nexus.disk}1') and f'{nexus.disk}1', 'no partition')


@check
def a_partition_is_refused():
    if REFERENCE:
        raise Skip('the reference reserves the whole disk')
    fd = os.open(partition(X), os.O_RDWR)
    refused(fd, X.disk)
    os.close(fd)


def map_node(name):
    """/dev/dm-N of a map of that name; without udev there is no /dev/mapper/NAME."""
    for folder in glob.glob('/sys/block/dm-*'):
        if read(f'{folder}/dm/name') == name:
            return f'/dev/{os.path.basename(folder)}'
    raise AssertionError(f'no map {name}')


@check
def a_linear_map_is_refused():
    if REFERENCE:
        raise Skip('the reference reserves the whole disk')
    modprobe('dm-mod')
    lun = LUNS[1]
    sectors = int(open(f'/sys/block/{lun.x.name}/size').read())
    run('dmsetup', 'create', '--noudevsync', 'slice', '--table', f'0 2048 linear {lun.x.disk} 2048')
    run('dmsetup', 'create', '--noudevsync', 'whole', '--table', f'0 {sectors} linear {lun.x.disk} 0')
    for name in ('slice', 'whole'):
        node = map_node(name)
        wait(lambda n=node: os.path.exists(n), f'no {node}')
        fd = os.open(node, os.O_RDWR)
        refused(fd, lun.x.disk)
        if name == 'whole':
            with Helper('-q', '--allow-dm-linear') as generous, Client(generous.path, fd) as client:
                good(client.register(0xF00))
                assert keys_of(lun.y.disk) == [0xF00]
        else:
            with Helper('-q', '--allow-dm-linear') as generous, Client(generous.path, fd) as client:
                sense(client.register(0xF00), 5, 0x20, 0)
        os.close(fd)
        run('dmsetup', 'remove', '--noudevsync', name)


@check
def a_block_device_that_is_no_scsi_disk():
    """A loop device: SG_IO itself says so, and the LUN beneath knows nothing of it."""
    modprobe('loop')
    run('losetup', '/dev/loop0', X.disk)
    with helper.client('/dev/loop0') as client:
        for reply in (client.register(0xBAD), client.register_and_ignore(0xBAD), client.input(READ_KEYS)):
            sense(reply, 5, 0x24, 0)
    run('losetup', '-d', '/dev/loop0')
    assert keys_of(X.disk) == []


@check
def files_are_refused():
    if REFERENCE:
        raise Skip('the reference answers b/00/06, which guests try again')
    with open('/run/regular', 'w') as file:
        file.truncate(1 << 20)
    os.mkfifo('/run/fifo')
    opened = [os.open(path, os.O_RDWR) for path in ('/run/regular', '/run/fifo', '/dev/null')]
    opened += [os.open('/run', os.O_RDONLY), os.open('/dev/ttyS0', os.O_RDWR | os.O_NOCTTY)]
    opened += [os.open(X.disk, os.O_PATH), os.memfd_create('m'), os.eventfd(0)]
    opened += [os.open(f'/dev/bsg/{X.device.name}', os.O_RDWR)]
    pair = socket.socketpair()
    for fd in [*opened, pair[0].fileno()]:
        try:
            refused(fd, X.disk)
        except AssertionError as error:
            raise AssertionError(f'{os.readlink(f"/proc/self/fd/{fd}")}: {error}') from error
    for fd in opened:
        os.close(fd)


# ---- Ends ----


@check
def killed_and_started_again():
    path = '/run/killed.sock'
    first = Helper('-q', path=path)
    with first.client(X.disk) as x:
        good(x.register(0x1))
        good(x.reserve(0x1, 1))
        x.connection.send(prwire.pr_in(READ_KEYS)[:9], [x.fd])  # in the middle of a request
        first.process.kill()
        first.process.wait(10)
        try:
            x.connection.reply()
            raise AssertionError('a reply from the dead')
        except prwire.Closed:
            pass
    with Helper('-q', path=path) as second, second.client(X.disk) as x:
        assert x.keys()[1] == [1] and x.reservation() == (1, 1)
        good(x.release(1, 1))
    wait(lambda: not os.path.exists(path), 'the socket is left')


@check
def killed_during_commands():
    path = '/run/during.sock'
    first = Helper('-q', path=path)
    running = threading.Event()
    ended = []

    def hammer(nexus, key):
        with first.client(nexus.disk) as client:
            try:
                while True:
                    good(client.register_and_ignore(key))
                    running.set()
            except (prwire.Closed, OSError):
                ended.append(key)

    threads = [
        threading.Thread(target=hammer, args=(nexus, key), daemon=True)
        for key, nexus in enumerate((X, Y), start=1)
    ]
    for thread in threads:
        thread.start()
    assert running.wait(10)
    first.process.kill()
    first.process.wait(10)
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == [1, 2]
    with Helper('-q', path=path) as second, second.client(X.disk) as x:
        assert set(x.keys()[1]) <= {1, 2}
        good(x.register_and_ignore(5))


def wedge(lun, through):
    """PREEMPT AND ABORT over tcm_loop: the kernel's target never answers."""
    x, y = through.client(lun.x.disk), through.client(lun.y.disk)
    good(x.register_and_ignore(1))
    good(y.register_and_ignore(2))
    good(x.reserve(1, 1))
    data = prwire.out_list(2, 1)
    y.connection.send(prwire.pr_out(5, 1) + data, [y.fd])
    try:
        reply = y.connection.reply(3)
        raise Skip(f'this kernel answers PREEMPT AND ABORT on tcm_loop: {reply}')
    except prwire.Silent:
        return x, y


@check(deadline=90)
def a_wedged_disk_delays_nobody_else():
    through = Helper('-q', '--stop-timeout=2') if not REFERENCE else Helper('-q')
    stuck = wedge(LUNS[-1], through)

    def work(number):
        lun = LUNS[number % (len(LUNS) - 1)]
        with through.client((lun.x, lun.y)[number // 2 % 2].disk) as client:
            for _ in range(5):
                good(client.register_and_ignore(0x2000 + number))
                client.keys()

    # More commands for the wedged disk than it may have at once, then others.
    waiting = [through.client(LUNS[-1].x.disk) for _ in range(70)]
    for client in waiting:
        client.connection.send(prwire.pr_in(READ_KEYS), [client.fd])
    begin = time.monotonic()
    at_once(work, 16)
    seconds = time.monotonic() - begin
    assert seconds < patience(10), f'the others took {seconds:.1f} s'
    if REFERENCE:
        raise Skip('the reference does not end while a command runs')
    seconds = through.stop(30)
    assert seconds < patience(8), f'SIGTERM took {seconds:.1f} s'
    assert not os.path.exists(through.path)
    del stuck, waiting


@check
def a_new_helper_beside_wedged_commands():
    with Helper('-q') as again, again.client(X.disk) as x:
        good(x.register(9))
        assert keys_of(Y.disk) == [9]


main(before_each=lambda: reset(*LUNS[:-1]))  # the last one is wedged at the end
