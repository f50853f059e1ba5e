# SPDX-License-Identifier: Apache-2.0
"""A client of a vhost-user disk that has several requests in flight over two queues, for tests with threads."""

from .vhostuser import DISCARD, FLUSH, IN, OK, OUT, UNMAP, WRITE_ZEROES, Closed, Guest, Request, segments
from .virtqueue import Memory, Region


class Gone(Exception):
    """The export was removed while a client used it."""


class QueueRequest(Request):
    """A request in memory of its queue."""

    memory = None

    def place(self, memory, layout):
        super().place(self.memory, layout)

    def release(self, memory):
        super().release(self.memory)


class VhostClient:
    """Two queues, so that both threads have one. Each has memory of its own: that a client hands a piece of memory from
    one thread to the other is an order that ThreadSanitizer cannot see."""

    def __init__(self, path, rng, packed=False, size=32):
        self.rng = rng
        regions = [Region(i << 24, 1 << 24, 0x7F0000000000 + (i << 32)) for i in range(3)]
        self.guest = Guest(path, queues=2, size=size, packed=packed, memory=Memory(regions))
        self.memories = [Memory([region], rng) for region in regions[1:]]  # the first holds the rings
        for queue, memory in zip(self.guest.queues, self.memories):
            queue.ring.memory = memory

    def begin(self, requests):
        return [self._submit(self._request(*one), self.rng.randrange(2)) for one in requests]

    def _submit(self, request, queue):
        request.memory = self.memories[queue]
        return self.guest.submit(request, queue)

    @staticmethod
    def _request(what, offset, data):
        sector = offset // 512
        if what == 'read':
            return QueueRequest(IN, sector, in_bytes=data)
        if what == 'write':
            return QueueRequest(OUT, sector, data)
        if what == 'flush':
            return QueueRequest(FLUSH)
        kind, flags = (WRITE_ZEROES, UNMAP) if what == 'zero' else (DISCARD, 0)
        return QueueRequest(kind, 0, segments((sector, data // 512, flags)))

    def finish(self, started):
        try:
            self.guest.wait(*started)
        except (Closed, OSError) as error:
            raise Gone from error
        for one in started:
            assert one.status == OK, f'{one} failed with status {one.status}'
        return [one.data if one.kind == IN else None for one in started]

    def close(self):
        self.guest.close()
