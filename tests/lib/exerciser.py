# SPDX-License-Identifier: Apache-2.0
"""A random file exerciser: reads, writes, mappings, truncation, holes, copies on one file, checked against a copy in memory.

    Exerciser(path, rng, size, largest, grows=True).run(operations)

Every change is followed by a look at the file's size, and every read is compared. The seed and the last operations are in the
message of a failure.
"""

import collections
import mmap
import os

from lib.fusefile import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate

SECTOR = 512


class Exerciser:
    """`size` is the size now, `largest` the one it may grow to. The file system rounds sizes up to `unit`; without `allocates`
    it cannot reserve space."""

    def __init__(self, path, rng, size, largest=None, unit=SECTOR, allocates=True):
        self.path, self.rng, self.unit = path, rng, unit
        self.largest = largest or size
        self.shadow = bytearray(size)
        self.log = collections.deque(maxlen=20)
        self.fd = os.open(path, os.O_RDWR)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, 1 << 20)  # aligned
        changes = [self.write, self.write, self.write_direct, self.map_write, self.punch, self.zero, self.copy]
        looks = [self.read, self.read, self.read_direct, self.map_read, self.sync, self.reopen, self.seek]
        if self.largest > size:
            changes.append(self.truncate)
        if self.largest > size and allocates:
            changes.append(self.allocate)
        self.operations = changes + looks

    def close(self):
        os.close(self.fd)
        os.close(self.direct)

    # -- choices --

    def range(self, limit, unit=1):
        """An offset and a length below the limit, mostly short ones."""
        length = max(unit, int(min(limit, 300000) * self.rng.random() ** 3) // unit * unit)
        offset = self.rng.randrange(0, max(1, limit - length + 1), unit)
        return offset, min(length, limit - offset)

    def note(self, what, *numbers):
        self.log.append((what, *numbers))

    # -- operations --

    def grow_to(self, end):
        if end > len(self.shadow):
            self.shadow += bytes(-(-end // self.unit) * self.unit - len(self.shadow))

    def change(self, offset, data):
        self.grow_to(offset + len(data))
        self.shadow[offset : offset + len(data)] = data

    def compare(self, offset, data, length):
        expected = self.shadow[offset : offset + length]
        assert len(data) == len(expected), f'{len(data)} bytes at {offset} instead of {len(expected)}'
        if data != expected:
            at = next(i for i in range(len(data)) if data[i] != expected[i])
            raise AssertionError(f'byte {offset + at} is {data[at]:#x}, not {expected[at]:#x}')

    def write(self):
        offset, length = self.range(self.largest)
        self.note('write', offset, length)
        data = self.rng.randbytes(length)
        assert os.pwrite(self.fd, data, offset) == length
        self.change(offset, data)

    def write_direct(self):
        offset, length = self.range(len(self.shadow) // SECTOR * SECTOR, SECTOR)
        self.note('write_direct', offset, length)
        data = self.rng.randbytes(length)
        self.buffer[:length] = data
        assert os.pwritev(self.direct, [memoryview(self.buffer)[:length]], offset) == length
        self.change(offset, data)

    def map_write(self):
        if not self.shadow:
            return
        offset, length = self.range(len(self.shadow))
        self.note('map_write', offset, length)
        data = self.rng.randbytes(length)
        with mmap.mmap(self.fd, len(self.shadow)) as view:
            view[offset : offset + length] = data
            if self.rng.random() < 0.3:
                view.flush()
        self.change(offset, data)

    def map_read(self):
        if not self.shadow:
            return
        offset, length = self.range(len(self.shadow))
        self.note('map_read', offset, length)
        with mmap.mmap(self.fd, len(self.shadow), prot=mmap.PROT_READ) as view:
            self.compare(offset, view[offset : offset + length], length)

    def read(self):
        offset, length = self.range(self.largest)
        self.note('read', offset, length)
        self.compare(offset, os.pread(self.fd, length, offset), length)

    def read_direct(self):
        offset, length = self.range(len(self.shadow) // SECTOR * SECTOR, SECTOR)
        self.note('read_direct', offset, length)
        got = os.preadv(self.direct, [memoryview(self.buffer)[:length]], offset)
        self.compare(offset, self.buffer[:got], length)

    def truncate(self):
        size = self.rng.randrange(self.largest // self.unit + 1) * self.unit
        self.note('truncate', size)
        os.ftruncate(self.fd, size)
        del self.shadow[size:]
        self.grow_to(size)

    def allocate(self):
        """Behind the end: inside the file an export does not offer it."""
        offset, length = self.range(self.largest - len(self.shadow))
        offset += len(self.shadow)
        if not length:
            return
        self.note('allocate', offset, length)
        fallocate(self.fd, 0, offset, length)
        self.grow_to(offset + length)

    def clear(self, mode, what):
        if not self.shadow:
            return
        offset, length = self.range(len(self.shadow))
        self.note(what, offset, length)
        fallocate(self.fd, mode | FALLOC_KEEP_SIZE, offset, length)
        self.shadow[offset : offset + length] = bytes(length)

    def punch(self):
        self.clear(FALLOC_PUNCH_HOLE, 'punch')

    def zero(self):
        self.clear(FALLOC_ZERO_RANGE, 'zero')

    def copy(self):
        source, length = self.range(len(self.shadow))
        target = self.rng.randrange(max(1, len(self.shadow) - length + 1))
        if abs(source - target) < length:
            return
        self.note('copy', source, target, length)
        done = os.copy_file_range(self.fd, self.fd, length, source, target)
        assert 0 < done <= length or not length
        self.change(target, bytes(self.shadow[source : source + done]))

    def seek(self):
        """What is said to be a hole reads as zeroes."""
        if not self.shadow:
            return
        at = self.rng.randrange(len(self.shadow))
        self.note('seek', at)
        try:
            data = os.lseek(self.fd, at, os.SEEK_DATA)
        except OSError:
            data = len(self.shadow)
        assert not any(self.shadow[at:data]), f'data in the hole from {at} to {data}'

    def sync(self):
        self.note('sync')
        os.fsync(self.fd)

    def reopen(self):
        self.note('reopen')
        self.close()
        self.fd = os.open(self.path, os.O_RDWR)
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def run(self, count):
        for number in range(count):
            try:
                self.rng.choice(self.operations)()
                size = os.fstat(self.fd).st_size
                assert size == len(self.shadow), f'size {size} instead of {len(self.shadow)}'
            except (AssertionError, OSError) as error:
                raise AssertionError(f'operation {number}: {error}; last ones: {list(self.log)}') from error

    def compare_all(self):
        with open(self.path, 'rb') as file:
            self.compare(0, file.read(), len(self.shadow))
