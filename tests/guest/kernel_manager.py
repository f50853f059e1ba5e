#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""pr-manager-kernel: granaryd as nobody reserves a disk of its own, with neither helper nor privilege."""

import os
import struct
import subprocess

from lab import check, lab, main, wait
from lib.prwire import out_list, pr_in, pr_out
from lib.qmp import Qmp
from pr import (
    CLEAR,
    NOBODY,
    PREEMPT,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    RELEASE,
    REPORT_CAPABILITIES,
    RESERVE,
    can_read,
    can_write,
    keys_of,
    reset,
)

LUN = lab.luns[0]
DISKS = {'x': LUN.x.disk, 'y': LUN.y.disk}
KX, KY = 0xFEEDFACE, 0x0DDBA11
READS = int(os.uname().release.split('.')[0]) >= 7  # READ KEYS and READ RESERVATION came with Linux 6.19
GOOD, CONFLICT, ILLEGAL_REQUEST = 0, 0x18, 5


class Daemon:
    def __init__(self):
        os.makedirs('/tmp/d')
        os.chown('/tmp/d', NOBODY, NOBODY)
        command = ['/usr/bin/granaryd', '--object', 'pr-manager-kernel,id=pr0']
        for node, disk in DISKS.items():
            os.chown(disk, NOBODY, NOBODY)
            command += [
                '--chardev',
                f'socket,id={node},path=/tmp/d/{node},server=on,wait=off',
                '--monitor',
                f'chardev={node}',
            ]
            command += ['--blockdev', f'host_device,node-name={node},filename={disk},pr-manager=pr0']
        self.process = subprocess.Popen(command, user=NOBODY, group=NOBODY, extra_groups=[])
        wait(lambda: os.path.exists('/tmp/d/y'), 'no monitor')
        self.monitors = {node: Qmp.connect(f'/tmp/d/{node}') for node in DISKS}

    def execute(self, node, cdb, data=b''):
        """(status, sense key, data)"""
        more = {'data': data.hex()} if data else {}
        result = self.monitors[node].cmd('x-granary-pr-execute', node_name=node, cdb=cdb.hex(), **more)
        sense = bytes.fromhex(result['sense'])
        return result['status'], (sense[2] & 15 if sense else None), bytes.fromhex(result['data'])

    def output(self, node, action, key=0, service_key=0, kind=0, flags=0):
        return self.execute(node, pr_out(action, kind), out_list(key, service_key, flags))[:2]


daemon = Daemon()
output, execute = daemon.output, daemon.execute
DONE, REFUSED = (GOOD, None), (2, ILLEGAL_REQUEST)


@check
def it_runs_without_privileges():
    with open(f'/proc/{daemon.process.pid}/status') as file:
        status = dict(line.rstrip('\n').split(':\t', 1) for line in file)
    assert status['Uid'].split() == [str(NOBODY)] * 4 and int(status['CapEff'], 16) == 0, status
    assert daemon.monitors['x'].cmd('query-pr-managers') == [{'id': 'pr0', 'connected': True}]


@check
def register_reserve_release():
    assert output('x', REGISTER, 0, KX) == DONE
    assert keys_of(LUN.y.disk) == [KX]
    assert output('x', RESERVE, KX, kind=3) == DONE
    assert (can_read(LUN.y.disk), can_write(LUN.y.disk), can_write(LUN.x.disk)) == (False, False, True)
    assert output('y', REGISTER, 0, KY) == DONE
    assert output('y', RESERVE, KY, kind=3)[0] == CONFLICT
    assert output('x', RELEASE, KX, kind=3) == DONE
    assert can_write(LUN.y.disk)
    assert output('x', REGISTER, KX, 0) == DONE
    assert keys_of(LUN.x.disk) == [KY]


@check
def a_wrong_key_is_a_conflict():
    assert output('x', REGISTER, 0, KX) == DONE
    assert output('x', REGISTER, 7, 8)[0] == CONFLICT
    assert output('x', RESERVE, 7, kind=1)[0] == CONFLICT
    assert keys_of(LUN.y.disk) == [KX]


@check
def preempt_and_clear():
    assert output('x', REGISTER_AND_IGNORE, 0, KX) == DONE
    assert output('y', REGISTER_AND_IGNORE, 0, KY) == DONE
    assert output('x', RESERVE, KX, kind=1) == DONE
    assert output('y', PREEMPT, KY, KX, kind=5) == DONE
    assert keys_of(LUN.y.disk) == [KY] and not can_write(LUN.x.disk)
    assert output('y', CLEAR, KY) == DONE
    assert keys_of(LUN.y.disk) == [] and can_write(LUN.x.disk)


@check
def reading():
    assert output('x', REGISTER, 0, KX) == DONE
    assert output('x', RESERVE, KX, kind=6) == DONE
    status, key, data = execute('y', pr_in(REPORT_CAPABILITIES, 512))
    assert (status, key, len(data)) == (GOOD, None, 8), data.hex()
    assert execute('y', pr_in(READ_FULL_STATUS, 512))[:2] == REFUSED
    keys, reservation = execute('y', pr_in(READ_KEYS, 512)), execute('y', pr_in(READ_RESERVATION, 512))
    if not READS:
        assert keys[:2] == reservation[:2] == REFUSED, (keys, reservation)
        return
    assert keys[0] == GOOD and struct.unpack('>Q', keys[2][8:]) == (KX,), keys
    assert struct.unpack_from('>Q5xB', reservation[2], 8) == (KX, 6), reservation


@check
def what_the_kernel_cannot_express():
    assert output('x', REGISTER, 0, KX, flags=8) == REFUSED  # SPEC_I_PT
    assert output('x', REGISTER, 0, KX, flags=4) == REFUSED  # ALL_TG_PT
    assert output('x', 7, KX, KY) == REFUSED
    assert keys_of(LUN.y.disk) == []


@check
def it_ends_well():
    daemon.monitors['x'].cmd('quit')
    assert daemon.process.wait(20) == 0


main(before_each=lambda: reset(LUN))
