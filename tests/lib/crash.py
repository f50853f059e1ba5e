# SPDX-License-Identifier: Apache-2.0
"""Writers that remember what a crash must not lose.

The image is divided among connections. Every write fills whole blocks with a number of its own; for each block the
history of numbers is kept, and which of them the last finished flush has made durable. After a crash each sector of a
block has to hold that number or a later one. A block has one request in flight at a time, so its history has an order.
"""

import fcntl
import os
import struct

from lib.tools import libnbd, wait_until

F_OFD_GETLK = 36

BLOCK = 1024
SECTOR = 512


def wait_unlocked(folder):
    """The kernel may finish what a killed daemon had submitted after its death, and keeps the images' locks until then."""

    def unlocked(fd):
        wanted = struct.pack('hhqqi', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # the whole file
        return struct.unpack('hhqqi', fcntl.fcntl(fd, F_OFD_GETLK, wanted))[0] == fcntl.F_UNLCK

    for path in folder.iterdir():
        if path.is_file():
            with open(path, 'r+b') as file:
                wait_until(lambda: unlocked(file.fileno()), f'the locks of {path}')


class Block:
    """What was written to one block since the durable state, oldest first, as sets of numbers: one number for a request,
    two for a block that a crash has left with two different sectors. Trims are in between but never durable.
    """

    def __init__(self, number):
        self.history = [({number}, 'write')]
        self.busy = False
        self.dropped = 0  # entries that have left the history's front

    def acceptable(self):
        return set().union(*(numbers for numbers, _ in self.history))

    def completed(self):
        """How many entries a flush that starts now makes durable (requests in flight are not among them)."""
        return len(self.history) - (1 if self.busy else 0)


class Ledger:
    """All blocks of an image."""

    def __init__(self, size):
        self.blocks = [Block(0) for _ in range(size // BLOCK)]
        self.next = 1

    def flushed(self, marks):
        """A flush has finished; `marks` are the completed counts when it began."""
        for block, (mark, dropped) in zip(self.blocks, marks):
            mark -= block.dropped - dropped
            durable = max((i for i in range(max(mark, 0)) if block.history[i][1] == 'write'), default=0)
            block.history = block.history[durable:]
            block.dropped += durable

    def marks(self):
        return [(block.completed(), block.dropped) for block in self.blocks]

    def verify(self, content):
        """Compares an image after a crash and takes what is there as the new durable state."""
        for index, block in enumerate(self.blocks):
            good = {struct.pack('>Q', number) * (SECTOR // 8) for number in block.acceptable()}
            found = set()
            for offset in range(index * BLOCK, (index + 1) * BLOCK, SECTOR):
                sector = content[offset : offset + SECTOR]
                assert sector in good, (
                    f'offset {offset}: {sector[:16].hex()}..., acceptable are {block.acceptable()}; the first is '
                    'what a flush had made durable'
                )
                found.add(struct.unpack('>Q', sector[:8])[0])
            block.history = [(found, 'write')]
            block.busy = False
            block.dropped = 0


class Writer:
    """One connection that writes to its own blocks [first, last)."""

    def __init__(self, handle, ledger, first, last, rng, discard):
        self.nbd = libnbd()
        self.handle, self.ledger, self.rng, self.discard = handle, ledger, rng, discard
        self.first, self.last = first, last
        self.flying = []  # (cookie, function)
        self.done = 0

    def start_one(self):
        if self.rng.random() < 0.08:
            marks = self.ledger.marks()
            self.flying.append((self.handle.aio_flush(), lambda: self.ledger.flushed(marks)))
            return
        index = self.rng.randrange(self.first, self.last)
        count = min(self.rng.choice((1, 1, 2, 7, 64)), self.last - index)
        blocks = self.ledger.blocks[index : index + count]
        if any(block.busy for block in blocks):
            return
        kind = self.rng.choice(('write',) * 6 + ('zero',) + (('trim',) if self.discard else ()))
        number = 0
        if kind == 'write':
            number = self.ledger.next
            self.ledger.next += 1
        for block in blocks:
            block.busy = True
            block.history.append(({number}, 'trim' if kind == 'trim' else 'write'))
        offset, length = index * BLOCK, count * BLOCK
        if kind == 'write':
            data = self.nbd.Buffer.from_bytearray(bytearray(struct.pack('>Q', number) * (length // 8)))
            cookie = self.handle.aio_pwrite(data, offset)
        elif kind == 'zero':
            cookie = self.handle.aio_zero(length, offset)
        else:
            cookie = self.handle.aio_trim(length, offset)

        def finish():
            for block in blocks:
                block.busy = False

        self.flying.append((cookie, finish))

    def turn(self, depth):
        """Fills up to `depth` requests in flight and collects what has finished."""
        for _ in range(depth - len(self.flying)):
            self.start_one()
        self.handle.poll(0 if self.rng.random() < 0.5 else 1)
        still = []
        for cookie, finish in self.flying:
            if self.handle.aio_command_completed(cookie):
                finish()
                self.done += 1
            else:
                still.append((cookie, finish))
        self.flying = still
