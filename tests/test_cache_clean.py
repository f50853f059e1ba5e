# SPDX-License-Identifier: Apache-2.0
"""Caches of qcow2 give their memory back when nobody has used them for an interval, and wake nobody when they are empty."""

import os
import time

import pytest

from lib import images
from lib.program import status
from lib.tools import need, run, wait_until

MIB = 1 << 20
SPAN = 512 * MIB  # of the disk, for each L2 table, which is a slice of the cache
DISK = 256 * SPAN
CACHED = 16 * MIB  # all tables


def make(path):
    need('qemu-img', 'qemu-io')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', path, DISK)
    images.qemu_io(path, [f'write -q -P 9 {offset} 512' for offset in range(0, DISK, SPAN)])


def add(served, path, interval):
    served.cmd('blockdev-add', node_name='n', **options(path, interval))


def options(path, interval):
    file = {'driver': 'file', 'filename': str(path)}
    return {'driver': 'qcow2', 'file': file, 'cache-clean-interval': interval, 'l2-cache-entry-size': 65536}


def switches(served):
    """How often the threads of the daemon have gone to sleep."""
    threads = os.listdir(f'/proc/{served.process.pid}/task')
    return sum(int(status(thread)['voluntary_ctxt_switches']) for thread in threads)


def fill(served):
    handle = served.connect('n')
    for offset in range(0, DISK, SPAN):
        assert handle.pread(512, offset) == b'\x09' * 512
    handle.shutdown()


def wait_empty(served, before):
    wait_until(lambda: served.memory('RssAnon') < before + CACHED // 4, 'the memory of the caches does not come back')


@pytest.mark.parametrize('start,then', [(None, None), ('t', None), (None, 't'), ('t', 'u')])
def test_idle_node_gives_its_memory_back(start, then, daemon, tmp):
    """Also one that has changed its thread meanwhile. Afterwards nothing wakes up."""
    make(tmp / 'image')
    served = daemon('--object', 'iothread,id=t', '--object', 'iothread,id=u', nbd=True)
    add(served, tmp / 'image', 3)
    before = served.memory('RssAnon')
    served.export('n', 'e', **({'iothread': start} if start else {}))
    fill(served)
    served.unexport('e', mode='hard')
    served.cmd('x-blockdev-set-iothread', node_name='n', iothread=then)
    wait_empty(served, before)
    served.stop()


def test_memory_is_kept_without_an_interval(daemon, tmp):
    """And a new interval that comes later is one for what is read then."""
    make(tmp / 'image')
    served = daemon(nbd=True)
    add(served, tmp / 'image', 0)
    before = served.memory('RssAnon')
    served.export('n', 'e')
    fill(served)
    assert served.memory('RssAnon') > before + CACHED // 2
    time.sleep(2.5)
    assert served.memory('RssAnon') > before + CACHED // 2
    served.cmd('blockdev-reopen', options=[{'node-name': 'n', **options(tmp / 'image', 1)}])
    fill(served)
    wait_empty(served, before)
    served.stop()


def test_nothing_wakes_up_for_empty_caches(daemon, tmp):
    make(tmp / 'image')
    served = daemon('--object', 'iothread,id=t', nbd=True)
    add(served, tmp / 'image', 1)
    served.export('n', 'e', iothread='t', writable=True)
    handle = served.connect('n')
    for offset in range(0, DISK, SPAN):
        handle.pwrite(b'\x08' * 512, offset + MIB)
    handle.flush()

    def quiet():
        first = switches(served)
        time.sleep(2.5)  # a cleaner would come twice
        return switches(served) == first

    wait_until(quiet, 'something goes on waking up')
    assert handle.pread(512, SPAN + MIB) == b'\x08' * 512
    handle.shutdown()
    served.stop()
    images.check(tmp / 'image')
