#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Reservations on dm-multipath maps: two paths are this host, a third nexus is another one."""

import contextlib
import os
import re
import struct
import threading
import time

import lab as machine
from lab import TARGET, check, lab, main, multipathd, read, run, wait, write
from pr import (
    NOBODY,
    READ_KEYS,
    REGISTER_AND_IGNORE,
    REPORT_CAPABILITIES,
    Client,
    Helper,
    can_read,
    can_write,
    conflict,
    good,
    keys_of,
    prwire,
    quiet,
    scsi,
    sense,
)

LUN, OTHER = lab.luns
KEY, FOREIGN = 0xABC123, 0xF00F
NOT_READY = (2, 0x04, 0x03)  # manual intervention required
LIBRARY = '/usr/lib/libmpathpersist.so.0'
os.umask(0)
helper = Helper()


def path_states(lun):
    """{sdX: state of the checker} as multipathd sees them."""
    lines = multipathd('show paths format "%d %t %T"').splitlines()
    return {
        words[0]: (words[1], words[2])
        for words in map(str.split, lines)
        if words[0] in (lun.x.name, lun.y.name)
    }


def wait_paths(lun, up):
    wait(
        lambda: all(path_states(lun).get(n.name) == ('active', 'ready') for n in up),
        f'paths {path_states(lun)}',
        30,
    )


def fresh():
    """Both maps whole and resumed, no keys anywhere, multipathd knows none."""
    if run('pidof', 'multipathd', ok=None).returncode:
        machine.start_multipathd()
    for lun in (LUN, OTHER):
        for nexus in (lun.x, lun.y, lun.z):
            if read(nexus.device / 'state') != 'running':
                nexus.state('running')
        wait_paths(lun, (lun.x, lun.y))
        for word in ('unsetprstatus', 'unsetprkey'):
            multipathd(f'{word} map {lun.dm}')
        quiet(lun.z.disk)
        if keys_of(lun.z.disk):
            scsi(lun.z.disk, prwire.pr_out(REGISTER_AND_IGNORE)[:10], prwire.out_list(0, 0x99))
            assert scsi(lun.z.disk, prwire.pr_out(3)[:10], prwire.out_list(0x99))[0] == 0
        quiet_all(lun)


def quiet_all(lun=LUN):
    """Takes unit attentions away: a path is told what another path of this host has done."""
    for nexus in (lun.x, lun.y, lun.z):
        for _ in range(10):
            if scsi(nexus.disk, bytes(6))[1][2:3] != b'\x06':
                break


def ports(client):
    """{(key, relative target port)} of all registrations"""
    return {(entry[0], entry[3]) for entry in client.full_status()}


@contextlib.contextmanager
def opened(lun=LUN, mode=os.O_RDWR):
    with helper.client(lun.map, mode) as client:
        yield client


def outsider(lun=LUN):
    return helper.client(lun.z.disk)


def prkey(lun=LUN):
    return multipathd(f'getprkey map {lun.dm}')


# ---- Commands ----


@check
def register_on_every_path():
    with opened() as m:
        good(m.register(KEY))
        assert ports(m) == {(KEY, 1), (KEY, 2)}, ports(m)
    assert keys_of(LUN.x.disk) == [KEY, KEY]
    assert f'{KEY:x}' in prkey(), prkey()
    text = run('mpathpersist', '--in', '--read-keys', LUN.map).stdout
    assert re.search(rf'0x{KEY:x}\b', text), text


@check
def register_changes_and_removes_the_key():
    with opened() as m:
        good(m.register(KEY))
        good(m.register(KEY + 1, key=KEY))
        assert ports(m) == {(KEY + 1, 1), (KEY + 1, 2)}
        assert f'{KEY + 1:x}' in prkey()
        good(m.register(0, key=KEY + 1))
        assert m.keys()[1] == [] and keys_of(LUN.z.disk) == []
    assert prkey() == 'none', prkey()


@check
def register_and_ignore_existing_key():
    with opened() as m:
        good(m.register_and_ignore(KEY))
        good(m.register_and_ignore(KEY + 2))
        assert ports(m) == {(KEY + 2, 1), (KEY + 2, 2)}
        good(m.register_and_ignore(0))
        assert m.keys()[1] == []


@check
def a_wrong_key_is_a_conflict():
    with opened() as m:
        good(m.register(KEY))
        conflict(m.register(7, key=8))
        conflict(m.reserve(7, 5))
        conflict(m.clear(7))
        conflict(m.preempt(7, KEY, 5))
        assert ports(m) == {(KEY, 1), (KEY, 2)} and m.reservation() is None
        good(m.reserve(KEY, 5))
        assert m.reservation() == (KEY, 5)


@check
def reserve_without_a_registration():
    with opened() as m:
        reply = m.reserve(KEY, 5)
        assert reply.status in (2, 0x18), reply
        assert m.keys()[1] == [] and m.reservation() is None


def reserved(kind, others_read):
    with opened() as m, outsider() as z:
        good(m.register(KEY))
        good(m.reserve(KEY, kind))
        assert m.reservation() == ((KEY if kind < 7 else 0), kind)
        for _ in range(8):  # on whichever path they go
            assert can_write(LUN.map) and can_read(LUN.map)
        assert (can_read(LUN.z.disk), can_write(LUN.z.disk)) == (others_read, False)
        assert m.full_status()[0][2] == kind or m.full_status()[1][2] == kind
        good(z.register(FOREIGN))
        assert can_write(LUN.z.disk)
        assert ports(m) == {(KEY, 1), (KEY, 2), (FOREIGN, 3)}
        if kind < 7:
            good(z.release(FOREIGN, kind))
            assert m.reservation() == (KEY, kind)
        good(m.release(KEY, kind))
        quiet_all()
        assert m.reservation() is None and ports(m) == {(KEY, 1), (KEY, 2), (FOREIGN, 3)}


@check
def reserve_write_exclusive_registrants():
    reserved(5, True)


@check
def reserve_exclusive_access_registrants():
    reserved(6, False)


@check
def reserve_write_exclusive_all():
    reserved(7, True)


@check
def reserve_exclusive_access_all():
    reserved(8, False)


@check
def release_that_does_not_fit_harms_nobody():
    with opened() as m, outsider() as z:
        good(m.register(KEY))
        good(z.register(FOREIGN))
        good(z.reserve(FOREIGN, 5))
        m.release(KEY, 5)  # the other host's
        m.release(KEY, 6)
        m.release(0x4711, 5)
        assert ports(m) == {(KEY, 1), (KEY, 2), (FOREIGN, 3)}, ports(m)
        assert m.reservation() == (FOREIGN, 5)


@check
def preempted_by_another_host():
    with opened() as m, outsider() as z:
        good(m.register(KEY))
        good(m.reserve(KEY, 5))
        good(z.register(FOREIGN))
        good(z.preempt(FOREIGN, KEY, 5))
        assert keys_of(LUN.z.disk) == [FOREIGN]
        quiet_all()
        assert not can_write(LUN.map) and can_read(LUN.map)
        assert can_write(LUN.z.disk)
        assert all(
            state == ('active', 'ready') for state in path_states(LUN).values()
        ), 'a conflict is no failed path'


@check
def preempting_another_host():
    with opened() as m, outsider() as z:
        good(z.register(FOREIGN))
        good(z.reserve(FOREIGN, 6))
        assert not can_write(LUN.map)
        good(m.register(KEY))
        good(m.preempt(KEY, FOREIGN, 6))
        assert m.reservation() == (KEY, 6) and ports(m) == {(KEY, 1), (KEY, 2)}
        assert can_write(LUN.map)
        quiet(LUN.z.disk)
        assert not can_read(LUN.z.disk)


@check
def clear_takes_everything():
    with opened() as m, outsider() as z:
        good(m.register(KEY))
        good(z.register(FOREIGN))
        good(m.reserve(KEY, 5))
        good(m.clear(KEY))
        quiet_all()
        assert m.keys()[1] == [] and m.reservation() is None
        assert can_write(LUN.z.disk)


@check
def reading_actions():
    with opened() as m:
        good(m.register(KEY))
        assert struct.unpack('>H', good(m.input(REPORT_CAPABILITIES)).payload[:2]) == (8,)
        assert good(m.input(READ_KEYS, 8)).payload == good(m.input(READ_KEYS)).payload[:8]
        sense(m.input(4), 5, 0x24, 0)
    with opened(mode=os.O_RDONLY) as m:
        assert m.keys()[1] == [KEY, KEY]
        sense(m.register_and_ignore(0), 5, 0x20, 0)
        assert m.keys()[1] == [KEY, KEY]


@check
def odd_commands():
    with opened() as m:
        good(m.register(KEY))
        odd = [(action, 0, bytes(24)) for action in (7, 8, 31)] + [(0, 0, bytes(8))]
        odd += [(1, kind, prwire.out_list(KEY)) for kind in (2, 15)]
        for action, kind, parameters in odd:
            reply = m.output(action, kind=kind, parameters=parameters)
            assert reply.check() and reply.check()[0] == 5, (action, kind, reply)
        assert ports(m) == {(KEY, 1), (KEY, 2)} and m.reservation() is None


@check
def as_nobody_with_the_descriptor():
    fd, done = os.open(LUN.map, os.O_RDWR), os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with Client(helper.path, fd) as m:
                good(m.register(KEY))
                good(m.reserve(KEY, 5))
            os.write(done[1], b'fine')
        except BaseException as error:
            os.write(done[1], repr(error).encode())
        os._exit(0)
    os.close(done[1])
    said = os.read(done[0], 4096).decode()
    os.wait()
    os.close(fd)
    assert said == 'fine', said
    assert keys_of(LUN.z.disk) == [KEY, KEY] and not can_write(LUN.z.disk)


# ---- Paths ----


@check(deadline=120)
def a_path_goes_and_comes_back():
    with opened() as m:
        good(m.register(KEY))
        good(m.reserve(KEY, 5))
        LUN.x.state('offline')
        wait(lambda: path_states(LUN)[LUN.x.name][0] == 'failed', 'multipathd does not see the path fail', 30)
        assert can_write(LUN.map)
        good(m.register(KEY + 5, key=KEY))
        assert (KEY + 5, 2) in ports(m), ports(m)
        LUN.x.state('running')
        wait_paths(LUN, (LUN.x, LUN.y))
        wait(lambda: ports(m) == {(KEY + 5, 1), (KEY + 5, 2)}, f'the key is not on the path: {ports(m)}', 30)
        for _ in range(8):
            assert can_write(LUN.map)
        assert m.reservation() == (KEY + 5, 5), m.reservation()


@check(deadline=120)
def registered_while_a_path_is_down():
    with opened() as m:
        LUN.y.state('offline')
        wait(lambda: path_states(LUN)[LUN.y.name][0] == 'failed', 'multipathd does not see the path fail', 30)
        good(m.register(KEY))
        assert ports(m) == {(KEY, 1)}
        good(m.reserve(KEY, 6))
        LUN.y.state('running')
        wait(lambda: ports(m) == {(KEY, 1), (KEY, 2)}, 'the path comes back without its key', 40)
        for _ in range(8):
            assert can_write(LUN.map)


@check(deadline=120)
def no_path_delays_no_other_lun():
    with opened() as m, opened(OTHER) as other:
        good(m.register(KEY))
        for nexus in (LUN.x, LUN.y):
            nexus.state('offline')
        wait(lambda: {s[0] for s in path_states(LUN).values()} == {'failed'}, 'paths do not fail', 30)
        m.connection.send(prwire.pr_in(READ_KEYS), [m.fd])  # sleeps in the kernel: queue_if_no_path
        begin = time.monotonic()
        good(other.register(KEY))
        assert ports(other) == {(KEY, 1), (KEY, 2)}
        with helper.client(OTHER.z.disk) as z:
            assert z.keys()[1] == [KEY, KEY]
        seconds = time.monotonic() - begin
        assert seconds < 5, f'{seconds:.1f} s'
        for nexus in (LUN.x, LUN.y):
            nexus.state('running')
        reply = m.connection.reply(40)
        assert reply.status in (0, 2), reply
        wait_paths(LUN, (LUN.x, LUN.y))


@check(deadline=90)
def told_to_stop_while_a_command_has_no_path():
    with Helper('-q', '--stop-timeout=2') as own, own.client(LUN.map) as m:
        for nexus in (LUN.x, LUN.y):
            nexus.state('offline')
        wait(lambda: {s[0] for s in path_states(LUN).values()} == {'failed'}, 'paths do not fail', 30)
        m.connection.send(prwire.pr_in(READ_KEYS), [m.fd])
        seconds = own.stop(30)
        assert seconds < 6, f'SIGTERM took {seconds:.1f} s'
        for nexus in (LUN.x, LUN.y):
            nexus.state('running')


@check
def a_suspended_map():
    with opened() as m, opened(OTHER) as other:
        good(m.register(KEY))
        run('dmsetup', 'suspend', '--noudevsync', LUN.map)
        try:
            begin = time.monotonic()
            m.connection.send(prwire.pr_in(READ_KEYS), [m.fd])
            assert other.keys()[1] == []
            assert time.monotonic() - begin < 0.9, 'another LUN waits for the suspended one'
            reply = m.connection.reply(20)
            assert reply.status in (2, 8), reply
            assert reply.check() is None or reply.check()[0] in (2, 0xB), reply
        finally:
            run('dmsetup', 'resume', '--noudevsync', LUN.map)
        assert m.keys()[1] == [KEY, KEY]


@check
def a_map_that_is_suspended_for_a_moment():
    with opened() as m:
        good(m.register(KEY))
        run('dmsetup', 'suspend', '--noudevsync', LUN.map)
        timer = threading.Timer(0.3, lambda: run('dmsetup', 'resume', '--noudevsync', LUN.map))
        timer.start()
        assert m.keys()[1] == [KEY, KEY]
        timer.join()


# ---- What is needed ----


def refused_cleanly():
    with opened() as m:
        for reply in (m.register(KEY), m.register_and_ignore(KEY), m.reserve(KEY, 5), m.clear(KEY)):
            sense(reply, *NOT_READY)
        assert m.keys()[1] == [] and m.reservation() is None and m.full_status() == []
    for nexus in (LUN.x, LUN.y, LUN.z):
        assert keys_of(nexus.disk) == []
        assert can_write(nexus.disk)
    assert can_write(LUN.map)


@check
def without_the_library():
    os.rename(LIBRARY, LIBRARY + '.away')
    try:
        refused_cleanly()
    finally:
        os.rename(LIBRARY + '.away', LIBRARY)
    assert 'libmpathpersist' in helper.log(), helper.log()
    with opened() as m:
        good(m.register(KEY))
        assert ports(m) == {(KEY, 1), (KEY, 2)}


@check(deadline=90)
def without_multipathd():
    machine.stop_multipathd()
    try:
        refused_cleanly()
    finally:
        machine.start_multipathd()
    assert 'multipathd' in helper.log(), helper.log()
    wait_paths(LUN, (LUN.x, LUN.y))
    with opened() as m:
        good(m.register(KEY))
        assert ports(m) == {(KEY, 1), (KEY, 2)}


# ---- Clean-up of a migration source ----


def cleanup(client):
    return client.connection.command(prwire.CLEANUP_CDB, client.fd)


@check
def cleanup_of_a_map():
    with opened() as m, outsider() as z:
        good(m.register(KEY))
        good(z.register(FOREIGN))
        good(cleanup(m))
        assert ports(m) == {(FOREIGN, 3)}
        assert prkey() == 'none', prkey()
        good(cleanup(m))
        good(m.register(KEY))
        assert ports(m) == {(KEY, 1), (KEY, 2), (FOREIGN, 3)}


@check
def cleanup_of_other_things():
    with opened() as m, opened(mode=os.O_RDONLY) as reader, outsider() as z:
        good(m.register(KEY))
        good(z.register(FOREIGN))
        sense(cleanup(reader), 5, 0x20, 0)
        good(cleanup(z))  # a single path: nothing to do
        assert ports(m) == {(KEY, 1), (KEY, 2), (FOREIGN, 3)}


# ---- ALUA ----


def access_state(nexus_number, state):
    """Puts the first LUN's port of that nexus into a group of its own with this access state."""
    group = TARGET / 'core/fileio_0' / LUN.name / 'alua' / f'group{nexus_number}'
    if not group.exists():
        group.mkdir()
        write(group / 'tg_pt_gp_id', 10 + nexus_number)
        port = TARGET / 'loopback' / f'naa.5001405aaaaaaaa{nexus_number}' / 'tpgt_1/lun/lun_0'
        write(port / 'alua_tg_pt_gp', f'group{nexus_number}')
    write(group / 'alua_access_state', state)
    quiet_all()


@check(deadline=120)
def alua_standby():
    access_state(2, 2)
    try:
        wait(lambda: path_states(LUN)[LUN.y.name][1] == 'ghost', f'no ghost path: {path_states(LUN)}', 30)
        with opened() as m:
            good(m.register(KEY))
            assert ports(m) == {(KEY, 1), (KEY, 2)}, ports(m)
            good(m.reserve(KEY, 5))
            assert can_write(LUN.map) and not can_write(LUN.z.disk)
            good(m.release(KEY, 5))
            good(m.register(0, key=KEY))
            assert m.keys()[1] == []
        with helper.client(LUN.y.disk) as y:  # a standby path alone takes the commands, too
            good(y.register(KEY))
            good(y.register(0, key=KEY))
    finally:
        access_state(2, 0)


@check(deadline=120)
def alua_unavailable():
    access_state(2, 3)
    try:
        wait(lambda: path_states(LUN)[LUN.y.name] != ('active', 'ready'), 'the path is still in use', 30)
        with opened() as m:
            good(m.register(KEY))
            assert (KEY, 1) in ports(m), ports(m)
            good(m.reserve(KEY, 5))
            assert can_write(LUN.map) and not can_write(LUN.z.disk)
        with helper.client(LUN.y.disk) as y:
            sense(y.input(READ_KEYS), 2, 0x04, 0x0C)
    finally:
        access_state(2, 0)
    with helper.client(LUN.map) as m:
        wait(lambda: ports(m) == {(KEY, 1), (KEY, 2)}, 'the path comes back without its key', 40)


main(before_each=fresh)
