# SPDX-License-Identifier: Apache-2.0
"""The driver's side of virtqueues, split and packed (virtio 1.2, 2.7 and 2.8), and the guest memory that they lie in.

Memory is regions of files with an allocator over them, and can tell whether a device has written where it should not. A ring
takes chains of buffers, directly or in indirect tables, shows them to the device and collects what has been used.
The machine has to be little-endian with strongly ordered stores, as x86 is.
"""

import bisect
import mmap
import os
import struct
import threading
from typing import NamedTuple

PAGE = 4096
DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
DESC_AVAIL, DESC_USED = 1 << 7, 1 << 15  # packed rings only
PATTERN = 0xA5  # what memory holds that nobody uses

_locked = threading.Lock()


def fence():
    """Stores before it are visible before loads after it: taking a lock is a locked instruction."""
    with _locked:
        pass


class Violation(AssertionError):
    """The device has broken the specification."""


class RingFull(Exception):
    """No free descriptors for this request; some must complete first."""


class Buffer(NamedTuple):
    guest: int
    bytes: int
    writable: bool = False


class Region:
    """A piece of guest memory in a file; a new one unless `fd` says in which."""

    def __init__(self, guest, size, user, offset=0, fd=None):
        self.guest, self.size, self.user, self.offset = guest, size, user, offset
        self.fd = os.memfd_create('guest-memory') if fd is None else os.dup(fd)
        if os.fstat(self.fd).st_size < offset + size:
            os.ftruncate(self.fd, offset + size)
        before = offset % PAGE
        self.view = memoryview(mmap.mmap(self.fd, before + size, offset=offset - before))[before:]

    @property
    def end(self):
        return self.guest + self.size

    def description(self):
        return struct.pack('<QQQQ', self.guest, self.size, self.user, self.offset)

    def close(self):
        os.close(self.fd)


class Memory:
    """Guest memory: regions and an allocator over them. With `rng` what it gives lies in unpredictable places."""

    def __init__(self, regions, rng=None):
        self.regions = list(regions)  # in the order in which the back end is told
        self.rng = rng
        self.unused = []  # [start, end) extents in order; over the border of adjacent regions, too
        self.guarded = False
        self.recycles = True  # False: what was freed is not used again
        for region in self.regions:
            self._add_extent(region.guest, region.end)

    @classmethod
    def plain(cls, size=16 << 20, rng=None):
        return cls([Region(0, size, 0x7F0000000000)], rng)

    @classmethod
    def scattered(cls, rng=None, size=8 << 20):
        """Four regions: two adjacent ones of different files, one behind a gap in the same file as the first, one
        above 4 GiB. User addresses have another order."""
        quarter = size // 4
        low = Region(0x1000, quarter, 0x7F3000000000)
        return cls(
            [
                low,
                Region(0x1000 + quarter, quarter, 0x7F1000000000, offset=3 * PAGE),
                Region(0x40000000, quarter, 0x7F2000001000, offset=quarter + PAGE, fd=low.fd),
                Region(0x100000000, quarter, 0x7F0000000000, offset=PAGE),
            ],
            rng,
        )

    def close(self):
        for region in self.regions:
            region.close()

    def region_of(self, guest):
        for region in self.regions:
            if region.guest <= guest < region.end:
                return region
        raise ValueError(f'guest address {guest:#x} is in no region')

    def pieces(self, guest, count):
        """Views of the memory, one for each region that the range lies in."""
        while count:
            region = self.region_of(guest)
            here = min(count, region.end - guest)
            yield region.view[guest - region.guest : guest - region.guest + here]
            guest, count = guest + here, count - here

    def view(self, guest, count):
        """One view of the range, which lies in one region."""
        (piece,) = self.pieces(guest, count)
        return piece

    def read(self, guest, count):
        return b''.join(bytes(piece) for piece in self.pieces(guest, count))

    def write(self, guest, data):
        for piece in self.pieces(guest, len(data)):
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]

    def user(self, guest):
        """The front end's own address, which is how messages name rings."""
        region = self.region_of(guest)
        return region.user + guest - region.guest

    def borders(self):
        """Guest addresses where one region ends and another begins."""
        starts = {region.guest for region in self.regions}
        return [region.end for region in self.regions if region.end in starts]

    def alloc(self, count, align=1, one_region=False, at=None):
        """Takes `count` bytes of memory; `at` says where (ValueError if that is not free)."""
        extents = self._extents(one_region)
        if self.rng and at is None:
            extents = list(extents)
            first = self.rng.randrange(len(extents))
            extents = extents[first:] + extents[:first]
        for start, end in extents:
            guest = -(-start // align) * align if at is None else at
            if start <= guest and guest + count <= end:
                if self.rng and at is None and end - guest - count > 8 * align:
                    room = min(end - guest - count, 1 << 16)
                    guest += self.rng.randrange(room // align) * align
                self._cut_extent(guest, guest + count)
                return guest
        raise ValueError(f'no {count} free bytes of guest memory')

    def free(self, guest, count):
        if self.guarded:
            self.write(guest, bytes([PATTERN]) * count)
        if self.recycles:
            self._add_extent(guest, guest + count)

    def guard(self):
        """From now on unused memory holds a pattern."""
        self.guarded = True
        for start, end in self.unused:
            self.write(start, bytes([PATTERN]) * (end - start))

    def check_guard(self):
        """Nobody has written where nothing was allocated."""
        for start, end in self.unused:
            if self.read(start, end - start).count(PATTERN) != end - start:
                raise Violation(f'a write outside of the buffers, in {start:#x} to {end:#x}')

    def _extents(self, one_region):
        if not one_region:
            yield from self.unused
            return
        for start, end in self.unused:
            for region in self.regions:
                if max(start, region.guest) < min(end, region.end):
                    yield max(start, region.guest), min(end, region.end)

    def _add_extent(self, start, end):
        at = bisect.bisect(self.unused, (start, end))
        if at < len(self.unused) and self.unused[at][0] == end:
            end = self.unused.pop(at)[1]
        if at > 0 and self.unused[at - 1][1] == start:
            at -= 1
            start = self.unused.pop(at)[0]
        self.unused.insert(at, (start, end))

    def _cut_extent(self, start, end):
        at = bisect.bisect(self.unused, (start, 1 << 64)) - 1
        before, behind = self.unused.pop(at)
        if end < behind:
            self.unused.insert(at, (end, behind))
        if before < start:
            self.unused.insert(at, (before, start))


class Ring:
    """What both formats have in common: the three areas, indirect tables, and what is outstanding."""

    def __init__(self, memory, size, event_idx, areas):
        self.memory, self.size, self.event_idx = memory, size, event_idx
        (self.desc, self.avail, self.used) = (
            memory.alloc(count, align, one_region=True) for count, align in areas
        )
        self.views = [
            memory.view(at, count) for at, (count, _) in zip((self.desc, self.avail, self.used), areas)
        ]
        for view in self.views:
            view[:] = bytes(len(view))
        self.outstanding = {}  # id -> (cookie, descriptors of the ring, memory to free)

    def make_table(self, buffers):
        """An indirect table; returns its address and size."""
        count = 16 * len(buffers)
        at = self.memory.alloc(count, align=16)
        self.memory.write(at, self.table_bytes(buffers))
        return Buffer(at, count)

    def add(self, cookie, buffers, indirect=False, direct=0):
        """Puts a request into the ring; publish() shows it to the device. Returns its id.

        indirect: the buffers from number `direct` on are described by a table.
        """
        needed = direct + 1 if indirect else len(buffers)
        if needed > self.free_count():
            raise RingFull
        chain = [(one.guest, one.bytes, DESC_WRITE if one.writable else 0) for one in buffers]
        tables = []
        if indirect:
            tables.append(self.make_table(buffers[direct:]))
            chain[direct:] = [(tables[0].guest, tables[0].bytes, DESC_INDIRECT)]
        ident, taken = self.add_chain(chain)
        self.outstanding[ident] = (cookie, taken, tables)
        return ident

    def collect(self):
        """All requests that the device has finished since the last call, as (cookie, bytes written)."""
        done = []
        while True:
            entry = self.next_used()
            if entry is None:
                return done
            ident, written = entry
            if ident not in self.outstanding:
                raise Violation(f'used entry {ident} of {written} bytes, which is not outstanding')
            cookie, taken, tables = self.outstanding.pop(ident)
            self.give_back(ident, taken)
            for table in tables:
                self.memory.free(table.guest, table.bytes)
            done.append((cookie, written))


class SplitRing(Ring):
    """A split virtqueue. Descriptors are handed out in random order if the memory is."""

    def __init__(self, memory, size, event_idx=False):
        super().__init__(memory, size, event_idx, [(16 * size, 16), (6 + 2 * size, 2), (6 + 8 * size, 4)])
        self.avail16 = self.views[1].cast('H')  # flags, idx, ring[size], used_event
        self.used16 = self.views[2].cast('H')  # flags, idx, ring[size] of (id, length), avail_event
        self.unused = list(range(size))
        if memory.rng:
            memory.rng.shuffle(self.unused)
        self.next_avail = 0  # what publish() will show
        self.shown = 0
        self.last_used = 0

    def start_at(self, index):
        """Instead of 0, before anything is in the ring; also what SET_VRING_BASE has to say."""
        self.next_avail = self.shown = self.last_used = index
        self.avail16[1] = self.used16[1] = index
        self.used16[2 + 4 * self.size] = index  # avail_event, as a device would have left it

    def free_count(self):
        return len(self.unused)

    def write_descriptor(self, index, guest, count, flags, following):
        struct.pack_into('QIHH', self.views[0], 16 * index, guest, count, flags, following)

    def table_bytes(self, buffers):
        """The first descriptor comes first, the others in any order."""
        places = list(range(1, len(buffers)))
        if self.memory.rng:
            self.memory.rng.shuffle(places)
        places.insert(0, 0)
        table = bytearray(16 * len(buffers))
        for i, one in enumerate(buffers):
            flags = DESC_WRITE if one.writable else 0
            following = 0
            if i + 1 < len(buffers):
                flags, following = flags | DESC_NEXT, places[i + 1]
            struct.pack_into('<QIHH', table, 16 * places[i], one.guest, one.bytes, flags, following)
        return bytes(table)

    def add_chain(self, chain):
        taken = [self.unused.pop() for _ in chain]
        for i, (guest, count, flags) in enumerate(chain):
            if i + 1 < len(chain):
                self.write_descriptor(taken[i], guest, count, flags | DESC_NEXT, taken[i + 1])
            else:
                self.write_descriptor(taken[i], guest, count, flags, 0)
        self.offer(taken[0])
        return taken[0], taken

    def offer(self, head):
        """Writes a head into the available ring; publish() moves the index."""
        self.avail16[2 + self.next_avail % self.size] = head
        self.next_avail = (self.next_avail + 1) & 0xFFFF

    def give_back(self, ident, taken):
        for index in taken:
            self.unused.append(index)
            if self.memory.rng:
                other = self.memory.rng.randrange(len(self.unused))
                self.unused[-1], self.unused[other] = self.unused[other], self.unused[-1]

    def publish(self):
        """Shows the device what was added; True if it wants a kick."""
        old, self.shown = self.shown, self.next_avail
        self.avail16[1] = self.next_avail
        fence()
        if self.event_idx:
            event = self.used16[2 + 4 * self.size]
            return (self.shown - event - 1) & 0xFFFF < (self.shown - old) & 0xFFFF
        return not self.used16[0] & 1

    def next_used(self):
        if self.last_used == self.used16[1]:
            return None
        entry = struct.unpack_from('II', self.views[2], 4 + 8 * (self.last_used % self.size))
        self.last_used = (self.last_used + 1) & 0xFFFF
        return entry

    def ask_for_calls(self, calls):
        """Whether the device is to call for the next request that it finishes."""
        if self.event_idx:
            self.avail16[2 + self.size] = self.last_used if calls else (self.last_used - 1) & 0xFFFF
        else:
            self.avail16[0] = 0 if calls else 1
        fence()

    def base(self):
        """What QEMU says in SET_VRING_BASE after the back end was lost."""
        return self.used16[1]


class PackedRing(Ring):
    """A packed virtqueue."""

    def __init__(self, memory, size, event_idx=False):
        super().__init__(memory, size, event_idx, [(16 * size, 16), (4, 4), (4, 4)])
        self.avail16 = self.views[1].cast('H')  # driver event suppression: offset and wrap, flags
        self.used16 = self.views[2].cast('H')  # device event suppression
        self.ids = list(range(size))
        if memory.rng:
            memory.rng.shuffle(self.ids)
        self.room = size
        self.next_avail, self.avail_wrap = 0, 1
        self.last_used, self.used_wrap = 0, 1
        self.heads = []  # (ring index, flags) that publish() writes
        self.added = 0  # descriptors since the last publish

    def start_at(self, index, wrap):
        self.next_avail = self.last_used = index
        self.avail_wrap = self.used_wrap = wrap
        for i in range(self.size):  # used in the last round, or in the one before
            flags = (DESC_AVAIL | DESC_USED) * (wrap if i < index else 1 - wrap)
            self.write_descriptor(i, 0, 0, flags, 0)

    def free_count(self):
        return self.room

    def write_descriptor(self, index, guest, count, flags, ident):
        struct.pack_into('QIHH', self.views[0], 16 * index, guest, count, ident, flags)

    def table_bytes(self, buffers):
        return b''.join(
            struct.pack('<QIHH', one.guest, one.bytes, 0, DESC_WRITE if one.writable else 0)
            for one in buffers
        )

    def add_chain(self, chain):
        ident = self.ids.pop()
        for i, (guest, count, flags) in enumerate(chain):
            flags |= (DESC_AVAIL if self.avail_wrap else DESC_USED) | (DESC_NEXT if i + 1 < len(chain) else 0)
            if i == 0:
                self.heads.append((self.next_avail, flags))
                flags ^= DESC_AVAIL | DESC_USED  # not available before publish()
            self.write_descriptor(self.next_avail, guest, count, flags, ident)
            self.advance(1)
        return ident, len(chain)

    def advance(self, count):
        self.next_avail += count
        self.added += count
        self.room -= count
        if self.next_avail >= self.size:
            self.next_avail -= self.size
            self.avail_wrap ^= 1

    def give_back(self, ident, taken):
        self.room += taken
        self.last_used += taken
        if self.last_used >= self.size:
            self.last_used -= self.size
            self.used_wrap ^= 1
        self.ids.insert(self.memory.rng.randrange(len(self.ids) + 1) if self.memory.rng else 0, ident)

    def publish(self):
        for index, flags in reversed(self.heads):
            struct.pack_into('H', self.views[0], 16 * index + 14, flags)
        self.heads.clear()
        added, self.added = self.added, 0
        fence()
        where, flags = self.used16[0], self.used16[1] & 3
        if flags != 2:
            return flags == 0
        event = (where & 0x7FFF) - (0 if where >> 15 == self.avail_wrap else self.size)
        return (self.next_avail - event - 1) & 0xFFFF < added

    def next_used(self):
        (flags,) = struct.unpack_from('H', self.views[0], 16 * self.last_used + 14)
        if flags & (DESC_AVAIL | DESC_USED) != (DESC_AVAIL | DESC_USED) * self.used_wrap:
            return None
        _, count, ident, flags = struct.unpack_from('QIHH', self.views[0], 16 * self.last_used)
        return ident, count if flags & DESC_WRITE else 0

    def ask_for_calls(self, calls):
        if not calls:
            self.avail16[1] = 1
        elif self.event_idx:
            self.avail16[0] = self.last_used | self.used_wrap << 15
            self.avail16[1] = 2
        else:
            self.avail16[1] = 0
        fence()

    def base(self):
        """Both indices, as far as the driver has seen used descriptors."""
        seen = self.last_used | self.used_wrap << 15
        return seen | seen << 16
