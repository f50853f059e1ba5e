#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""PREEMPT AND ABORT over iSCSI, where TransportIDs are names and not addresses."""

import threading

from lab import check, lab, main, run
from pr import Helper, attention, can_read, can_write, conflict, good, reset, sense

LUN = lab.luns[0]
X, Y = LUN.x, LUN.y
helper = Helper('-q')
x, y = helper.client(X.disk), helper.client(Y.disk)


def both_register():
    good(x.register(0x11))
    good(y.register(0x22))


@check
def preempt_and_abort_takes_the_reservation():
    both_register()
    good(x.reserve(0x11, 3))
    assert can_write(Y.disk) is False
    good(y.preempt(0x22, 0x11, 1, abort=True))
    attention(x, 0x05)
    assert x.keys()[1] == [0x22] and x.reservation() == (0x22, 1)
    assert can_read(X.disk) and not can_write(X.disk) and can_write(Y.disk)


@check
def preempt_and_abort_of_a_registrant():
    both_register()
    good(x.reserve(0x11, 5))
    good(x.preempt(0x11, 0x22, 5, abort=True))
    attention(y, 0x05)
    assert y.keys()[1] == [0x11] and y.reservation() == (0x11, 5)
    assert not can_write(Y.disk)


@check
def preempt_and_abort_of_an_unknown_key_conflicts():
    both_register()
    good(x.reserve(0x11, 1))
    conflict(y.preempt(0x22, 0x4711, 1, abort=True))
    assert x.reservation() == (0x11, 1)


@check
def preempt_and_abort_while_the_victim_writes():
    both_register()
    good(x.reserve(0x11, 5))
    end, writes, fences = threading.Event(), [], []

    def victim():
        while not end.is_set() and not fences:
            (writes if can_write(Y.disk) else fences).append(1)

    thread = threading.Thread(target=victim, daemon=True)
    thread.start()
    while not writes:
        end.wait(0.01)
    good(x.preempt(0x11, 0x22, 5, abort=True))
    thread.join(20)
    end.set()
    assert fences, 'the victim goes on writing'
    assert x.keys()[1] == [0x11]


@check
def transport_ids_are_names():
    both_register()
    good(x.reserve(0x11, 1))
    found = sorted(y.full_status())
    assert [entry[:4] for entry in found] == [(0x11, True, 1, 1), (0x22, False, 0, 2)], found
    for number, entry in enumerate(found, start=1):
        assert entry[4][0] & 15 == 5, entry
        assert entry[4][4:].startswith(f'iqn.2026-01.lab:init{number}'.encode()), entry


@check
def sg_persist_sees_the_same():
    both_register()
    good(x.reserve(0x11, 1))
    text = run('sg_persist', '--in', '--read-full-status', Y.disk).stdout
    assert 'iqn.2026-01.lab:init1' in text and '0x11' in text and 'Write Exclusive' in text, text
    run(
        'sg_persist',
        '--out',
        '--preempt-abort',
        '--param-rk=0x22',
        '--param-sark=0x11',
        '--prout-type=1',
        Y.disk,
    )
    sense(x.input(0), 6, 0x2A, 0x05)
    assert x.reservation() == (0x22, 1)


main(before_each=lambda: reset(LUN))
