# SPDX-License-Identifier: Apache-2.0
"""A random load of virtio-blk requests, many in flight, whose answers and effects are all checked.

Requests that are in flight at the same time never overlap unless all of them read, so that what the disk has to hold is known at any time.
"""

from lib.vhostuser import (
    DISCARD,
    FLUSH,
    IN,
    OK,
    OUT,
    SECTOR,
    UNMAP,
    WRITE_ZEROES,
    Request,
    Violation,
    segments,
)

WEIGHTS = {IN: 4, OUT: 6, WRITE_ZEROES: 1, DISCARD: 1, FLUSH: 1}


class Load:
    """`content` is what the disk holds and follows the writes; `most` is the longest request in sectors."""

    def __init__(self, guest, content, rng, most=24, weights=None):
        self.guest, self.content, self.rng, self.most = guest, bytearray(content), rng, most
        self.kinds, self.weights = zip(*(weights or WEIGHTS).items())
        self.known = bytearray(b'\1') * (len(content) // SECTOR)  # 0: was discarded
        self.busy = {}  # request -> (first sector, sectors, whether it reads)
        self.answered = 0

    def step(self, queue=None, kick=True):
        """Submits a request."""
        self.settle()
        rng = self.rng
        kind = rng.choices(self.kinds, self.weights)[0]
        count = rng.randint(1, self.most)
        sector = rng.randrange(len(self.known) - count + 1)
        if kind == FLUSH:
            sector = count = 0
        elif not self._is_free(sector, count, kind == IN):
            return None
        request = self._request(kind, sector, count)
        self.busy[request] = (sector, count, kind == IN)
        queue = rng.randrange(len(self.guest.queues)) if queue is None else queue
        return self.guest.submit(request, queue, kick=kick)

    def run(self, count, depth=32):
        """Submits that many requests, up to `depth` at a time."""
        for _ in range(count):
            self.step()
            while len(self.guest.in_flight) >= depth:
                self.guest.wait_some()

    def finish(self):
        """Waits for all and checks them."""
        self.guest.wait()
        self.settle()
        if self.busy:
            raise Violation(f'{self.busy} are lost')

    def settle(self):
        """Looks at the requests that were answered since the last time."""
        for request in [one for one in self.busy if one.done]:
            sector, count, _ = self.busy.pop(request)
            self.answered += 1
            if request.status != OK:
                raise Violation(f'{request} failed with status {request.status}')
            if request.kind == IN:
                self.compare(request.data, sector, count, request)

    def compare(self, data, sector=0, count=None, what='the whole'):
        """Data against what sectors have to hold."""
        count = len(self.known) if count is None else count
        if data == self.content[sector * SECTOR : (sector + count) * SECTOR]:
            return
        for i in range(sector, sector + count):
            here = data[(i - sector) * SECTOR : (i - sector + 1) * SECTOR]
            if self.known[i] and here != self.content[i * SECTOR : (i + 1) * SECTOR]:
                raise Violation(
                    f'{what}: sector {i} holds {here[:24]}..., not {bytes(self.content[i * SECTOR :][:24])}...'
                )

    def compare_all(self, piece=256):
        """Reads everything back through the guest."""
        self.finish()
        for sector in range(0, len(self.known), piece):
            count = min(piece, len(self.known) - sector)
            self.compare(self.guest.read(sector, count * SECTOR), sector, count)

    def _is_free(self, sector, count, reads):
        return not any(
            sector < other + length and other < sector + count and not (reads and other_reads)
            for other, length, other_reads in self.busy.values()
        )

    def _request(self, kind, sector, count):
        where = slice(sector * SECTOR, (sector + count) * SECTOR)
        known = slice(sector, sector + count)
        if kind == IN:
            return Request(IN, sector, in_bytes=count * SECTOR)
        if kind == OUT:
            self.content[where] = self.rng.randbytes(count * SECTOR)
            self.known[known] = b'\1' * count
            return Request(OUT, sector, bytes(self.content[where]))
        if kind == WRITE_ZEROES:
            self.content[where] = bytes(count * SECTOR)
            self.known[known] = b'\1' * count
            return Request(WRITE_ZEROES, 0, segments((sector, count, self.rng.choice((0, UNMAP)))))
        if kind == DISCARD:
            self.known[known] = bytes(count)
            return Request(DISCARD, 0, segments((sector, count)))
        return Request(FLUSH)
