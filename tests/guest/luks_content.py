# SPDX-License-Identifier: Apache-2.0
"""What host and guest write into an encrypted volume by turns: both know it from the seed alone."""

import random

WRITES = 12  # in a turn
SIZES = (1, 1, 2, 3, 8, 9, 17, 128, 131)  # of a write, in sectors


class Contents:
    """The bytes that must be in `size` bytes from `base` on; nobody's before the first turn has filled them."""

    def __init__(self, name, seed, size, sector, base):
        self.name, self.random, self.size, self.sector, self.base = name, random.Random(seed), size, sector, base
        self.data = b''

    def writes(self):
        """The (offset, data) of the next turn: everything in the first one, some sectors here and there later."""
        if not self.data:
            self.data = bytearray(self.random.randbytes(self.size))
            return [(self.base, bytes(self.data))]
        return [self._write() for _ in range(WRITES)]

    def _write(self):
        length = self.random.choice(SIZES) * self.sector
        at = self.random.randrange(0, self.size - length + 1, self.sector)
        data = self.random.randbytes(length)
        self.data[at : at + length] = data
        return self.base + at, data

    def compare(self, found):
        """Fails with the place of the first byte that is another one."""
        assert len(found) == self.size, f'{len(found)} bytes instead of {self.size}'
        if found != self.data:
            at = next(i for i in range(self.size) if found[i] != self.data[i])
            sectors = {i for i in range(0, self.size, 512) if found[i : i + 512] != self.data[i : i + 512]}
            raise AssertionError(f'{self.name}: {len(sectors)} sectors differ, the first at byte {self.base + at}')
