# SPDX-License-Identifier: Apache-2.0
"""Verified load on vhost-user disks for as long as the host wants it. The argument is JSON, a list of disks as
lib/vhost_guest.py describes them.

Each disk has two loads that run again and again until the host says `enough`: fio writes its part at random and
verifies it, and this script writes blocks that name themselves, reads some back at once, and all of them in the end.
"""

import glob
import json
import mmap
import os
import random
import re
import struct
import sys
import threading
import time

from lab import at, check, hear, main, modprobe, read, run, wait
from vhost_content import content_sum

MIB = 1 << 20
BLOCK = 4096
FIO_SIZE = 24 * MIB
OWN_AT, OWN_SIZE = FIO_SIZE, 8 * MIB
COMPLAINTS = re.compile(r'.*(?:I/O error|is not a head|Buffer I/O|EXT4-fs error|JBD2:).*')

wanted = json.loads(sys.argv.pop(1))
disks = []
enough = threading.Event()


class Writer(threading.Thread):
    """One of the threads that write blocks with a number of their own and know what each block has to hold."""

    def __init__(self, path, first, last, seed):
        super().__init__(daemon=True)
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.first, self.last, self.seed = first, last, seed
        self.random = random.Random(seed)
        self.numbers = {}
        self.buffer = mmap.mmap(-1, BLOCK)
        self.failure, self.written = None, 0

    def content(self, block):
        return struct.pack('<QQ', block, self.numbers[block]) * (BLOCK // 16)

    def run(self):
        try:
            while not enough.is_set():
                self.one_write()
        except Exception as error:  # reported by the check
            self.failure = error

    def one_write(self):
        block = self.random.randrange(self.first, self.last)
        self.numbers[block] = self.written << 8 | self.seed
        self.buffer[:] = self.content(block)
        assert os.pwritev(self.fd, [self.buffer], block * BLOCK) == BLOCK
        self.written += 1
        if self.written % 16 == 0:
            os.fdatasync(self.fd)
        self.verify(self.random.choice(list(self.numbers)))

    def verify(self, block):
        assert os.preadv(self.fd, [self.buffer], block * BLOCK) == BLOCK
        found = self.buffer[:]
        good = self.content(block)
        assert found == good, f'block {block}: {found[:16].hex()}, wanted {good[:16].hex()}'


class Fio(threading.Thread):
    """fio, one run after the other."""

    def __init__(self, disk):
        super().__init__(daemon=True)
        self.disk, self.failure, self.runs = disk, None, 0

    def run(self):
        try:
            while not enough.is_set():
                self.one_run()
        except Exception as error:  # reported by the check
            self.failure = error

    def one_run(self):
        run('blkdiscard', '-o', 0, '-l', FIO_SIZE, self.disk.path, timeout=300)  # so that clusters are taken again
        run(
            'fio', '--name=load', f'--filename={self.disk.path}', f'--size={FIO_SIZE}', '--rw=randwrite',
            '--bssplit=4k/80:16k/15:64k/5', '--direct=1', '--ioengine=libaio', '--iodepth=24', '--fdatasync=64',
            '--verify=crc32c', '--verify_fatal=1', f'--randseed={self.runs + 1}', '--output-format=terse',
            cwd='/run', timeout=900,
        )  # fmt: skip
        self.runs += 1


class Disk:
    def __init__(self, what):
        self.what = what
        pattern = f'/sys/bus/pci/devices/0000:00:{what["slot"]:02x}.0/virtio*/block/vd*'
        self.sys = wait(lambda: glob.glob(pattern), f'no disk in slot {what["slot"]:#x}', 60)[0]
        self.path = f'/dev/{os.path.basename(self.sys)}'
        assert (read(f'{self.sys}/device/features')[34] == '1') == what['packed']
        assert len(os.listdir(f'{self.sys}/mq')) == what['queues']

    def start(self):
        self.fio = Fio(self)
        first, each = OWN_AT // BLOCK, OWN_SIZE // BLOCK // 4
        self.writers = [Writer(self.path, first + n * each, first + (n + 1) * each, n) for n in range(4)]
        for thread in [self.fio, *self.writers]:
            thread.start()

    def end(self, deadline):
        for thread in [self.fio, *self.writers]:
            thread.join(max(1, deadline - time.monotonic()))
            assert not thread.is_alive(), f'{self.path}: {thread} hangs'
            assert thread.failure is None, f'{self.path}: {thread.failure}'
        print(f'{self.path}: {self.fio.runs} runs of fio, {[writer.written for writer in self.writers]} writes')


@check(deadline=900)
def load_until_the_host_has_enough():
    modprobe('virtio_pci', 'virtio_blk')
    disks.extend(Disk(what) for what in wanted)
    for disk in disks:
        disk.start()
    at('load')
    assert hear() == 'enough'
    enough.set()
    end = time.monotonic() + 200
    for disk in disks:
        disk.end(end)


@check(deadline=200)
def all_blocks_hold_what_was_written():
    for disk in disks:
        for writer in disk.writers:
            for block in writer.numbers:
                writer.verify(block)


@check(deadline=200)
def sums():
    for disk in disks:
        run('blockdev', '--flushbufs', disk.path)
        print(f'sum {disk.what["id"]} {content_sum(disk.path, disk.what["size"])}', flush=True)


@check
def no_complaints_of_the_kernel():
    complaints = COMPLAINTS.findall(run('dmesg').stdout)
    assert not complaints, '\n'.join(complaints)


main()
