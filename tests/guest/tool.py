#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The command granary-pr on a real LUN, through a helper and directly; looked at without it."""

import json
import os

from lab import Skip, check, lab, main, run
from lib.prhelper import sanitized
from pr import HELPER, NOBODY, Helper, can_read, can_write, keys_of, reset

TOOL = '/usr/bin/granary-pr'
LUN = lab.luns[0]
X, Y = LUN.x.disk, LUN.y.disk
DONE, USAGE, NO_DEVICE, CONFLICT, REFUSED = 0, 1, 2, 3, 4
os.umask(0)
helper = Helper('-q')
THROUGH = [f'--socket={helper.path}']
DIRECTLY = ['--direct', f'--helper={HELPER}']


def tool(*words, ok=(DONE,), way=None):
    """What granary-pr prints."""
    return run(TOOL, words[0], *(way or THROUGH), *words[1:], ok=ok).stdout


def said(*words, **more):
    return json.loads(tool(words[0], '--json', *words[1:], **more))


def every_command(way):
    def do(*words, ok=(DONE,)):
        return tool(*words, ok=ok, way=way)

    assert said('keys', X, way=way)['keys'] == []
    assert said('reservation', X, way=way)['held'] is False
    do('register', '--new-key=0xa', X)
    do('register', '--new-key=0xb', Y)
    assert keys_of(X) == [0xA, 0xB]
    do('register', '--key=0xb', '--new-key=0xb0', Y)
    assert do('keys', X).split() == ['0xa', '0xb0']
    assert said('keys', Y, way=way)['keys'] == ['0xa', '0xb0']
    do('register', '--new-key=0xb1', Y, ok=(CONFLICT,))
    do('register', '--ignore', '--new-key=0xb', Y)
    do('reserve', '--key=0xa', '--type=exclusive-access', X)
    assert (can_read(Y), can_write(Y), can_write(X)) == (False, False, True)
    do('reserve', '--key=0xb', '--type=exclusive-access', Y, ok=(CONFLICT,))
    answer = said('reservation', Y, way=way)
    assert (answer['held'], answer['key'], answer['type']) == (True, '0xa', 'exclusive-access'), answer
    do('release', '--key=0xa', '--type=exclusive-access', X)
    assert can_write(Y)
    do('reserve', '--key=0xa', '--type=5', X)
    status = said('status', Y, way=way)
    assert status['type'] == 'write-exclusive-registrants' and status['full'] is True, status
    assert [(r['key'], r['holder'], r['port'], r['initiator']) for r in status['registrants']] == [
        ('0xa', True, 1, 'naa.6001405bbbbbbbb1'),
        ('0xb', False, 2, 'naa.6001405bbbbbbbb2'),
    ], status
    do('register-and-move', '--key=0xa', '--new-key=0xb2', '--to=naa.6001405bbbbbbbb2', X)
    assert said('reservation', Y, way=way)['key'] == '0xb2'
    do('preempt', '--key=0xa', '--victim=0xb2', '--type=write-exclusive', X)
    assert keys_of(X) == [0xA] and not can_write(Y) and can_write(X)
    do('clear', '--key=0x5', X, ok=(CONFLICT,))
    do('clear', '--key=0xa', X)
    assert said('keys', X, way=way)['keys'] == [] and can_write(Y)


@check
def every_command_through_the_helper():
    every_command(THROUGH)


@check
def every_command_directly():
    if sanitized(HELPER):
        raise Skip('the filter of system calls does not let a sanitizer work')
    every_command(DIRECTLY)


@check
def capabilities():
    answer = said('capabilities', X)
    assert len(answer['types']) == 6 and answer['persist-through-power-loss'] is True, answer
    assert len(tool('capabilities', X).splitlines()) >= 6


@check
def unregister():
    tool('register', '--new-key=0x1', X)
    tool('register', '--key=0x1', '--new-key=0', X)
    assert keys_of(X) == []


@check
def power_loss_and_all_ports():
    tool('register', '--new-key=0x1', '--aptpl', X)
    assert said('capabilities', X)['persist-active'] is True
    tool('clear', '--key=0x1', X)
    tool('register', '--new-key=0x1', '--all-target-ports', X)
    assert keys_of(Y) == [1]
    tool('clear', '--key=0x1', X)


@check
def a_user_who_may_only_use_the_helper():
    node = '/run/disk-for-nobody'
    os.mknod(node, 0o60600, os.stat(X).st_rdev)
    os.chown(node, NOBODY, NOBODY)
    tool_as_nobody = ['setpriv', '--reuid', NOBODY, '--regid', NOBODY, '--clear-groups', TOOL]
    run(*tool_as_nobody, 'register', *THROUGH, '--new-key=0x77', node)
    assert keys_of(Y) == [0x77]
    run(*tool_as_nobody, 'keys', *DIRECTLY, node, ok=(NO_DEVICE, REFUSED))
    run(*tool_as_nobody, 'clear', *THROUGH, '--key=0x77', node)
    assert keys_of(Y) == []
    os.unlink(node)


@check
def mistakes():
    tool('keys', ok=(USAGE,))
    tool('keys', '/dev/nosuch', ok=(NO_DEVICE,))
    tool('keys', X, way=['--socket=/nowhere'], ok=(NO_DEVICE,))
    tool('keys', '/dev/null', ok=(REFUSED,))
    tool('reserve', '--key=0x1', '--type=2', X, ok=(USAGE,))
    assert keys_of(X) == []


main(before_each=lambda: reset(LUN))
