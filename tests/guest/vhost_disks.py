# SPDX-License-Identifier: Apache-2.0
"""The life of vhost-user disks in a guest: partitions, a file system, load with verification, discard, write cache,
resize, unplug and plug. The argument is JSON, a list of disks as lib/vhost_guest.py describes them.

Every check works on all disks at once. The host acts where the scenario says at(...).
"""

import concurrent.futures
import glob
import json
import os
import re
import sys

from lab import at, check, hear, main, modprobe, read, run, wait, write
from vhost_content import content_sum

MIB = 1 << 20
# A file system, and a partition that is used raw. The host looks for the hole that discard leaves.
RAW_AT = 34 * MIB
TABLE = 'label: dos\nstart=1MiB, size=32MiB, type=83\nstart=34MiB, size=28MiB, type=83\n'
ZEROES_AT, ZEROES_SIZE = 40 * MIB, MIB + 4096
DISCARD_AT, DISCARD_SIZE = 44 * MIB, 8 * MIB
FIO = ('--direct=1', '--ioengine=libaio', '--verify=crc32c', '--verify_fatal=1', '--output-format=terse')
COMPLAINTS = re.compile(r'.*(?:I/O error|is not a head|blocked for more|Buffer I/O|EXT4-fs error|reset).*')

wanted = json.loads(sys.argv.pop(1))
disks = []


class Disk:
    """One of the wanted disks, found by its PCI address."""

    def __init__(self, what):
        self.what, self.slot, self.size = what, what['slot'], what['size']
        self.appear()

    def appear(self):
        found = wait(
            lambda: glob.glob(f'/sys/bus/pci/devices/0000:00:{self.slot:02x}.0/virtio*/block/vd*'),
            f'no disk in PCI slot {self.slot:#x}',
            60,
        )
        self.sys, self.name = f'/sys/block/{os.path.basename(found[0])}', os.path.basename(found[0])
        self.path = f'/dev/{self.name}'
        wait(lambda: os.path.exists(self.path), f'no {self.path}')
        self.mount = f'/mnt/{self.name}'

    def feature(self, bit):
        return read(f'{self.sys}/device/features')[bit] == '1'

    def interrupts(self):
        """How many interrupts each queue has had."""
        virtio = os.path.basename(os.path.realpath(f'{self.sys}/device'))
        lines = [line.split() for line in read('/proc/interrupts').splitlines()]
        return [
            sum(int(word) for word in line[1:] if word.isdigit())
            for line in lines
            if line[-1].startswith(f'{virtio}-req.')
        ]

    def pread(self, offset, length):
        """From the disk, not from the cache."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)


def on_all(function):
    """Runs it for all disks side by side; the first failure comes through."""
    with concurrent.futures.ThreadPoolExecutor(len(disks)) as pool:
        return list(pool.map(function, disks))


def fio(disk, name, *options, timeout=150):
    run('fio', f'--name={name}', *options, *FIO, cwd='/run', timeout=timeout)


@check
def disks_are_what_was_asked_for():
    modprobe('virtio_pci', 'virtio_blk', 'ext4')
    disks.extend(Disk(what) for what in wanted)
    for disk in disks:
        what, queues = disk.what, len(os.listdir(f'{disk.sys}/mq'))
        assert read(f'{disk.sys}/serial') == what['serial'], read(f'{disk.sys}/serial')
        assert int(read(f'{disk.sys}/size')) * 512 == disk.size
        assert queues == what['queues'], f'{queues} queues'
        assert disk.feature(34) == what['packed'], f'packed ring: {disk.feature(34)}'
        assert read(f'{disk.sys}/ro') == '0'
        assert int(read(f'{disk.sys}/queue/logical_block_size')) == what['block']


@check
def write_cache_can_be_switched():
    for disk in disks:
        for state in ('write back', 'write through', 'write back'):
            write(f'{disk.sys}/cache_type', state)
            assert read(f'{disk.sys}/cache_type') == state
            assert read(f'{disk.sys}/queue/write_cache') == state


@check
def partitions():
    def one(disk):
        run('sfdisk', '-q', disk.path, input=TABLE, stdin=None)
        wait(lambda: os.path.exists(f'{disk.path}2'), f'no {disk.path}2')

    on_all(one)


@check(deadline=200)
def file_system_with_verified_load():
    def one(disk):
        run('mke2fs', '-q', '-t', 'ext4', f'{disk.path}1', timeout=60)
        os.makedirs(disk.mount)
        run('mount', f'{disk.path}1', disk.mount, timeout=60)
        with open(f'{disk.mount}/random', 'wb') as file:
            file.write(os.urandom(4 * MIB))
        options = ('--rw=randrw', '--bs=4k', '--size=4M', '--iodepth=8', '--fsync=32')
        fio(disk, 'file', f'--filename={disk.mount}/load', *options)

    on_all(one)


@check(deadline=200)
def verified_load_on_all_queues():
    def one(disk):
        queues = disk.what['queues']
        cpus = (f'--numjobs={queues}', f'--cpus_allowed=0-{queues - 1}', '--cpus_allowed_policy=split')
        for name, mode, block, megabytes in (('small', 'randwrite', '4k', 4), ('large', 'write', '512k', 20)):
            each = megabytes // queues
            area = (f'--filename={disk.path}2', f'--size={each}M', f'--offset_increment={each}M')
            fio(disk, name, f'--rw={mode}', f'--bs={block}', '--iodepth=16', *area, *cpus)
        counts = disk.interrupts()
        assert len(counts) == queues and all(counts), f'interrupts of the queues: {counts}'

    on_all(one)


@check
def discard_and_zeroes():
    def one(disk):
        run('rm', f'{disk.mount}/load')
        trimmed = int(re.search(r'\((\d+) bytes\)', run('fstrim', '-v', disk.mount).stdout).group(1))
        assert trimmed > 4 * MIB, f'{trimmed} bytes trimmed'
        for begin, size, *option in ((DISCARD_AT, DISCARD_SIZE), (ZEROES_AT, ZEROES_SIZE, '-z')):
            run('blkdiscard', *option, '-o', begin - RAW_AT, '-l', size, f'{disk.path}2')
            assert disk.pread(begin, size) == bytes(size), f'no zeroes at {begin}'
            assert disk.pread(begin - 4096, 4096) != bytes(4096), f'zeroes before {begin}'
            assert disk.pread(begin + size, 4096) != bytes(4096), f'zeroes behind {begin + size}'

    on_all(one)


@check(deadline=100)
def resize_is_seen():
    at('resize')
    for disk in disks:
        disk.size = disk.what['new-size']
        wait(lambda d=disk: int(read(f'{d.sys}/size')) * 512 == d.size, f'{disk.name} does not grow', 60)
        with open(disk.path, 'r+b', buffering=0) as file:
            file.seek(disk.size - MIB)
            file.write(os.urandom(MIB))


@check(deadline=150)
def file_systems_are_sound():
    def one(disk):
        run('umount', disk.mount)
        run('e2fsck', '-fn', f'{disk.path}1', timeout=60)
        run('blockdev', '--flushbufs', disk.path)
        disk.sum = content_sum(disk.path, disk.size)
        print(f'sum {disk.what["id"]} {disk.sum}', flush=True)

    on_all(one)


@check(deadline=150)
def unplug_and_plug():
    def gone(disk):
        wait(lambda: not os.path.exists(disk.sys), f'{disk.name} is not gone', 60)

    at('unplug')
    for disk in disks:
        gone(disk)
    assert hear() == 'unplugged'
    at('plug')
    disks[0].appear()
    assert content_sum(disks[0].path, disks[0].size) == disks[0].sum
    at('unplug-again')
    gone(disks[0])
    assert hear() == 'unplugged'


@check
def no_complaints_of_the_kernel():
    complaints = COMPLAINTS.findall(run('dmesg').stdout)
    assert not complaints, '\n'.join(complaints)


main()
