# SPDX-License-Identifier: Apache-2.0
"""Random writes, zeroing, discards, reads and flushes over NBD with a shadow copy of what must be there.

Requests of one round touch different places and are all in flight at the same time.
"""

import os

from lib.tools import libnbd

SECTOR = 512
# Requests in flight together. The reference loses data when a write and a discard or zeroing meet in one cluster (10.0.2);
# a run of these tests against it needs 1 here.
WIDTH = int(os.environ.get('GRANARY_TEST_WIDTH', '8'))


def read_all(handle):
    """The whole contents of an export."""
    size, step = handle.get_size(), 1 << 20
    return b''.join(handle.pread(min(step, size - at), at) for at in range(0, size, step))


def scatter(handle, rng, shadow, sector=SECTOR):
    """Writes, zeroes and flushes of many sizes, one after the other; each is read back. `shadow` is the contents."""
    sizes = [512, 1024, 4096, 5120, 65536, 70144, 300032, (1 << 20) + 512, 3 << 19]
    for _ in range(60):
        length = max(min(rng.choice(sizes), len(shadow)) // sector, 1) * sector
        offset = rng.randrange(0, len(shadow) - length + 1, sector)
        kind = rng.random()
        data = shadow[offset : offset + length]
        if kind < 0.75:
            data = rng.randbytes(length)
            handle.pwrite(data, offset)
        elif kind < 0.9:
            data = bytes(length)
            handle.zero(length, offset)
        else:
            handle.flush()
        shadow[offset : offset + length] = data
        assert handle.pread(length, offset) == data


def use(handle, rng, shadow=None, sector=SECTOR):
    """Finds the contents (whatever they are, without `shadow`), changes them, finds the changes and leaves; returns them."""
    found = bytearray(read_all(handle))
    assert shadow is None or found == shadow
    scatter(handle, rng, found, sector)
    assert read_all(handle) == found
    handle.shutdown()
    return found


class Workload:
    """Drives one export, or the part of it from `base` on; `shadow` is the expected contents."""

    def __init__(self, handle, shadow, rng, grain=1, largest=200000, base=0):
        self.nbd = libnbd()
        self.handle = handle
        self.shadow = bytearray(shadow)
        self.rng = rng
        self.grain = max(grain, handle.get_block_size(self.nbd.SIZE_MINIMUM) or 1)
        self.largest = largest
        self.base = base

    def ranges(self, count):
        """`count` ranges that do not overlap, some touching, aligned to the grain."""
        size = len(self.shadow)
        taken = []
        for _ in range(count * 4):
            length = self.grain * max(1, int(self.largest / self.grain * self.rng.random() ** 4))
            if self.rng.random() < 0.3:
                unit = self.rng.choice((4096, 65536))
                offset = self.rng.randrange(0, size, unit)
                length = (length // unit + 1) * unit
            elif taken and self.rng.random() < 0.3:
                offset = taken[-1][1]
            else:
                offset = self.grain * self.rng.randrange(size // self.grain)
            end = min(size, offset + length)
            if offset < end and all(end <= first or last <= offset for first, last in taken):
                taken.append((offset, end))
            if len(taken) == count:
                break
        return taken

    def start(self, offset, end):
        """Starts one random request; returns (cookie, function that checks and notes the result)."""
        length = end - offset
        kind = self.rng.choice(('write', 'write', 'write', 'zero', 'zero', 'trim', 'read', 'read'))
        flags = self.nbd.CMD_FLAG_FUA if self.rng.random() < 0.1 else 0
        if kind == 'write':
            data = self.rng.randbytes(length) if self.rng.random() < 0.8 else bytes(length)
            buffer = self.nbd.Buffer.from_bytearray(bytearray(data))

            def wrote():
                self.shadow[offset:end] = data

            return self.handle.aio_pwrite(buffer, self.base + offset, flags=flags), wrote
        if kind == 'zero':
            if self.rng.random() < 0.3:
                flags |= self.nbd.CMD_FLAG_NO_HOLE

            def zeroed():
                self.shadow[offset:end] = bytes(length)

            return self.handle.aio_zero(length, self.base + offset, flags=flags), zeroed
        if kind == 'trim':
            trim = self.handle.aio_trim(length, self.base + offset, flags=flags)
            return trim, lambda: self.after_trim(offset, end)
        buffer = self.nbd.Buffer(length)

        def was_read():
            self.compare(offset, buffer.to_bytearray())

        return self.handle.aio_pread(buffer, self.base + offset), was_read

    def compare(self, offset, data):
        expected = self.shadow[offset : offset + len(data)]
        if data != expected:
            at = next(i for i in range(len(data)) if data[i] != expected[i])
            raise AssertionError(
                f'byte {offset + at}: {data[at]:#x} where {expected[at]:#x} was written '
                f'(read of {len(data)} at {offset})'
            )

    def after_trim(self, offset, end):
        """Discarded data may stay or become zero, piece by piece, but nothing else."""
        data = self.handle.pread(end - offset, self.base + offset)
        for start in range(0, len(data), SECTOR):
            piece, old = data[start : start + SECTOR], self.shadow[offset + start : offset + start + SECTOR]
            if piece != old and any(piece):  # a piece may be zero in part where a cluster begins inside it
                assert all(
                    p in (o, 0) for p, o in zip(piece, old)
                ), f'discard changed data at {offset + start}'
        self.shadow[offset:end] = data

    def wait(self, cookies):
        """Waits for all of these commands; an error of one is raised."""
        waiting = set(cookies)
        while waiting:
            done = {cookie for cookie in waiting if self.handle.aio_command_completed(cookie)}
            waiting -= done
            if waiting and not done:
                self.handle.poll(-1)

    def begin(self, width=WIDTH):
        """Starts requests that are in flight together, for finish()."""
        return [self.start(*one) for one in self.ranges(width)]

    def finish(self, started):
        self.wait([cookie for cookie, _ in started])
        for _, finish in started:
            finish()
        if self.rng.random() < 0.2:
            self.handle.flush()

    def run(self, rounds, width=WIDTH):
        for _ in range(rounds):
            self.finish(self.begin(width))

    def compare_all(self):
        step = 1 << 20
        for offset in range(0, len(self.shadow), step):
            data = self.handle.pread(min(step, len(self.shadow) - offset), self.base + offset)
            self.compare(offset, bytearray(data))
