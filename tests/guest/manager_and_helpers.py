#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Granary's reservation manager with helpers and a real LUN: manager_and_helpers.py GRANARYD NAME:HELPER...

granaryd runs as an ordinary user; its nodes `x` and `y` are the two nexuses of the LUN and share a manager.
What it does is looked at from outside, without a helper. The checks of one helper build on each other.
"""

import os
import struct
import subprocess
import sys

from chain import chain
from lab import lab, main, run, wait
from lib.prwire import Reply, out_list, pr_in, pr_out
from lib.qmp import Qmp
from pr import (
    CLEAR,
    PREEMPT,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    RELEASE,
    REPORT_CAPABILITIES,
    RESERVE,
    Helper,
    can_write,
    quiet,
    reset,
    sg_keys,
)

LUN = lab.luns[0]
X, Y = LUN.x.disk, LUN.y.disk
KX, KY = 0xFEEDFACE, 0x0DDBA11
USER = 107
SOCKET, FOLDER = '/run/helper.sock', '/tmp/granaryd'
GOOD, CHECK, CONFLICT = 0x00, 0x02, 0x18
WRITE_EXCLUSIVE_REGISTRANTS = 5
NO_HELPER = (0xB, 0x00, 0x06)


def expect(reply, status, codes=None):
    wanted = f'status {status:#x} sense {codes}'
    assert (reply.status, reply.check()) == (status, codes), f'{reply}, expected {wanted}'
    return reply.payload


class Manager:
    """A granaryd with a helper."""

    def __init__(self, name, program):
        self.name, self.program = name, program
        self.helper = self.process = None
        self.monitors = {}  # one for each node, because a monitor carries one command out at a time

    def start_helper(self):
        self.helper = Helper(program=self.program, path=SOCKET)
        os.chown(SOCKET, USER, USER)

    def start(self):
        reset(LUN)
        self.start_helper()
        os.makedirs(FOLDER, exist_ok=True)
        os.chown(FOLDER, USER, USER)
        command = [GRANARYD, '--object', f'pr-manager-helper,id=pr0,path={SOCKET}']
        for node, disk in (('x', X), ('y', Y)):
            os.chown(disk, USER, USER)
            command += ['--chardev', f'socket,id={node},path={FOLDER}/{node},server=on,wait=off']
            command += ['--monitor', f'chardev={node}']
            command += ['--blockdev', f'host_device,node-name={node},filename={disk},pr-manager=pr0']
        self.process = subprocess.Popen(command, user=USER, group=USER, extra_groups=[])
        self.monitors = {node: Qmp.connect(f'{FOLDER}/{node}') for node in 'xy'}
        self.qmp = self.monitors['x']

    def begin(self, node, cdb, data=b''):
        arguments = {'node-name': node, 'cdb': cdb.hex(), **({'data': data.hex()} if data else {})}
        return node, self.monitors[node].send('x-granary-pr-execute', arguments)

    def end_of(self, command):
        node, number = command
        result = self.monitors[node].reply_to(number)['return']
        return Reply(result['status'], bytes.fromhex(result['sense']), bytes.fromhex(result['data']))

    def execute(self, node, cdb, data=b''):
        """Sends again what a unit attention has kept from being done, as a guest does."""
        for _ in range(5):
            answer = self.end_of(self.begin(node, cdb, data))
            if not answer.check() or answer.check()[0] != 6:
                return answer
        raise AssertionError('the unit attentions do not end')

    def input(self, node, action):
        return expect(self.execute(node, pr_in(action, 8192)), GOOD)

    def output(self, node, action, key=0, service_key=0, kind=0):
        return self.execute(node, pr_out(action, kind), out_list(key, service_key))

    def keys(self):
        data = self.input('x', READ_KEYS)
        return set(struct.unpack_from(f'>{(len(data) - 8) // 8}Q', data, 8))

    def connected(self):
        return self.qmp.cmd('query-pr-managers') == [{'id': 'pr0', 'connected': True}]

    def end(self):
        for process in (self.process, self.helper and self.helper.process):
            if process and process.poll() is None:
                process.kill()
                process.wait()


def reservation():
    quiet(Y)
    return run('sg_persist', '--in', '--read-reservation', Y).stdout


# ---- The checks, in the order in which they run ----


def starts(on):
    on.start()
    assert on.connected()
    assert on.keys() == set()


def registers(on):
    expect(on.output('x', REGISTER, service_key=KX), GOOD)
    expect(on.output('y', REGISTER, service_key=KY), GOOD)
    assert on.keys() == {KX, KY} == set(sg_keys(Y))


def reserves(on):
    expect(on.output('x', RESERVE, key=KY, kind=WRITE_EXCLUSIVE_REGISTRANTS), CONFLICT)
    expect(on.output('x', RESERVE, key=KX, kind=WRITE_EXCLUSIVE_REGISTRANTS), GOOD)
    expect(on.output('y', RESERVE, key=KY, kind=3), CONFLICT)
    assert f'Key={KX:#x}' in reservation() and 'Write Exclusive, registrants only' in reservation()
    data = on.input('y', READ_RESERVATION)
    assert struct.unpack_from('>Q5xB', data, 8) == (KX, WRITE_EXCLUSIVE_REGISTRANTS), data.hex()


def tells_capabilities_and_full_status(on):
    assert len(on.input('x', REPORT_CAPABILITIES)) == 8
    data = on.input('x', READ_FULL_STATUS)
    assert KX.to_bytes(8, 'big') in data and KY.to_bytes(8, 'big') in data, data.hex()


def fences(on):
    assert can_write(Y)
    expect(on.output('x', PREEMPT, key=KX, service_key=KY, kind=WRITE_EXCLUSIVE_REGISTRANTS), GOOD)
    quiet(Y)
    assert not can_write(Y) and can_write(X)
    assert on.keys() == {KX}


def refusals_of_the_disk_arrive(on):
    expect(on.execute('x', pr_in(0x1F, 64)), CHECK, (5, 0x24, 0x00))
    expect(on.execute('x', pr_out(REGISTER, length=8), bytes(8)), CHECK, (5, 0x1A, 0x00))


def both_disks_at_once(on):
    for _ in range(20):
        commands = [on.begin(node, pr_in(READ_KEYS, 64)) for node in 'xy']
        answers = {expect(on.end_of(command), GOOD) for command in commands}
        assert len(answers) == 1, answers


def an_idle_helper_dies(on):
    """The manager knows at once, commands fail with a sense that says "again", and a new helper is found."""
    on.qmp.events.clear()
    on.helper.process.kill()
    on.helper.process.wait()
    on.qmp.wait_event('PR_MANAGER_STATUS_CHANGED', id='pr0', connected=False)
    assert not on.connected()
    expect(on.execute('x', pr_in(READ_KEYS, 64)), CHECK, NO_HELPER)
    on.start_helper()
    wait(on.connected, 'the manager does not find the new helper', 30)
    assert on.keys() == {KX}
    assert f'Key={KX:#x}' in reservation()


def releases(on):
    expect(on.output('x', RELEASE, key=KX, kind=WRITE_EXCLUSIVE_REGISTRANTS), GOOD)
    assert 'there is NO reservation' in reservation()
    assert can_write(Y)
    expect(on.output('x', CLEAR, key=KX), GOOD)
    assert on.keys() == set() and sg_keys(Y) == []


def all_end_well(on):
    on.qmp.cmd('quit')
    assert on.process.wait(20) == 0
    on.helper.stop()


CASES = [
    starts, registers, reserves, tells_capabilities_and_full_status, fences, refusals_of_the_disk_arrive,
    both_disks_at_once, an_idle_helper_dies, releases, all_end_well,
]  # fmt: skip


GRANARYD = sys.argv[1]
for pair in sys.argv[2:]:
    chain(Manager(*pair.split(':')), CASES)
del sys.argv[1:]  # else main() takes them for names of checks
main()
