# SPDX-License-Identifier: Apache-2.0
"""Damage to qcow2 images: finds the structures of an image in memory, and changes one thing at a time."""

import struct

OFFSET = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
HEADER = {'l1_offset': 40, 'reftable': 48, 'snapshots': 64}


class Damage:
    """An image as bytes, with the places of its tables."""

    def __init__(self, path, rng):
        self.path, self.rng = path, rng
        self.data = bytearray(path.read_bytes())
        version, bits = self.get('>I', 4), self.get('>I', 20)
        self.cluster = 1 << bits
        self.order = self.get('>I', 96) if version >= 3 else 4
        self.incompatible = self.get('>Q', 72) if version >= 3 else 0
        self.entry_bytes = 16 if self.incompatible & 16 else 8
        self.l1 = [self.get('>Q', 40) + 8 * i for i in range(self.get('>I', 36))]
        table, clusters = self.get('>Q', 48), self.get('>I', 56)
        self.reftable = [table + 8 * i for i in range(clusters * self.cluster // 8)]
        self.per_block = self.cluster * 8 >> self.order
        self.snapshots = list(self.find_snapshots())

    def get(self, layout, at):
        return struct.unpack_from(layout, self.data, at)[0]

    def put(self, layout, at, value):
        struct.pack_into(layout, self.data, at, value)

    def find_snapshots(self):
        at = self.get('>Q', 64)
        for _ in range(self.get('>I', 60)):
            at = (at + 7) // 8 * 8
            yield at
            extra, ident, name = self.get('>I', at + 36), self.get('>H', at + 12), self.get('>H', at + 14)
            at += 40 + extra + ident + name

    def used(self, places):
        return [at for at in places if self.get('>Q', at) & OFFSET]

    def tables(self):
        """Places of the L2 entries in use, of the active tables."""
        entries = []
        for at in self.used(self.l1):
            start = self.get('>Q', at) & OFFSET
            entries += self.used(range(start, min(start + self.cluster, len(self.data) - 15), self.entry_bytes))
        return entries

    def standard(self):
        return [at for at in self.tables() if not self.get('>Q', at) & COMPRESSED]

    def refcount(self, cluster, value=None):
        """Sets the stored refcount of a cluster, or returns it; None where nothing counts it."""
        index, rest = divmod(cluster, self.per_block)
        block = self.get('>Q', self.reftable[index]) & OFFSET if index < len(self.reftable) else 0
        if not block:
            return None
        width = 1 << self.order
        at, shift = block + rest * width // 8, rest * width % 8
        size = max(width // 8, 1)
        word = int.from_bytes(self.data[at : at + size], 'big')
        mask = (1 << width) - 1
        if value is not None:
            word = word & ~(mask << shift) | (value & mask) << shift
            self.data[at : at + size] = word.to_bytes(size, 'big')
        return word >> shift & mask

    def save(self):
        self.path.write_bytes(self.data)

    # ---- What can be damaged; each returns False where the image has no such thing ----

    def some_refcount(self, change, used=True):
        clusters = [c for c in range(len(self.data) // self.cluster) if bool(self.refcount(c)) == used]
        if not clusters:
            return False
        cluster = self.rng.choice(clusters)
        self.refcount(cluster, change(self.refcount(cluster) or 0))
        return True

    def refcount_zero(self):
        return self.some_refcount(lambda count: 0)

    def refcount_larger(self):
        return self.some_refcount(lambda count: min(count + self.rng.choice((1, 2, 100)), (1 << (1 << self.order)) - 1))

    def refcount_smaller(self):
        return self.some_refcount(lambda count: count - 1)

    def leak(self):
        self.data += bytes(self.cluster * self.rng.choice((1, 3)))
        return self.some_refcount(lambda count: 1, used=False)

    def change(self, places, change):
        if not places:
            return False
        at = self.rng.choice(places)
        self.put('>Q', at, change(self.get('>Q', at)))
        return True

    def l2_copied(self):
        return self.change(self.standard(), lambda entry: entry ^ COPIED)

    def l1_copied(self):
        return self.change(self.used(self.l1), lambda entry: entry ^ COPIED)

    def l2_dropped(self):
        return self.change(self.tables(), lambda entry: 0)

    def l1_dropped(self):
        return self.change(self.used(self.l1), lambda entry: 0)

    def l2_twice(self):
        entries = self.standard()
        return bool(entries) and self.change(entries, lambda entry: self.get('>Q', self.rng.choice(entries)))

    def l2_into_metadata(self):
        target = self.rng.choice([0] + [self.get('>Q', at) for at in HEADER.values()]) & OFFSET
        return bool(target) and self.change(self.standard(), lambda entry: COPIED | target)

    def l2_beyond(self):
        end = len(self.data) // self.cluster * self.cluster
        return self.change(self.standard(), lambda entry: COPIED | end + self.cluster * self.rng.randrange(2, 50))

    def l2_unaligned(self):
        return self.cluster > 512 and self.change(self.standard(), lambda entry: entry + 512)

    def l2_reserved(self):
        return self.change(self.standard(), lambda entry: entry | 1 << self.rng.choice((1, 5, 8, 56, 60)))

    def l1_reserved(self):
        return self.change(self.used(self.l1), lambda entry: entry | 1 << self.rng.choice((0, 5, 8, 56, 60)))

    def compressed_copied(self):
        entries = [at for at in self.tables() if self.get('>Q', at) & COMPRESSED]
        return self.change(entries, lambda entry: entry | COPIED)

    def subclusters_both(self):
        if self.entry_bytes != 16:
            return False
        return self.change([at + 8 for at in self.standard()], lambda word: word | 1 << 32 | 1)

    def subclusters_nowhere(self):
        if self.entry_bytes != 16:
            return False
        start = self.get('>Q', self.rng.choice(self.used(self.l1) or self.l1)) & OFFSET
        free = [at for at in range(start, start + self.cluster, 16) if start and not self.get('>Q', at)]
        return bool(free) and self.change([at + 8 for at in free], lambda word: 1)

    def block_dropped(self):
        return self.change(self.used(self.reftable), lambda entry: 0)

    def block_reserved(self):
        return self.change(self.used(self.reftable), lambda entry: entry | 1)

    def block_beyond(self):
        return self.change(self.used(self.reftable), lambda entry: entry + (self.cluster << 12))

    def block_twice(self):
        used, free = self.used(self.reftable), [at for at in self.reftable if not self.get('>Q', at)]
        return bool(used and free) and self.change(free[:3], lambda entry: self.get('>Q', used[0]))

    def block_is_data(self):
        entries = self.standard()
        target = self.get('>Q', self.rng.choice(entries)) & OFFSET if entries else 0
        return bool(target) and self.change(self.used(self.reftable), lambda entry: target)

    def table_dropped(self):
        """The header names no refcount table that holds anything."""
        self.data += bytes(-len(self.data) % self.cluster + self.cluster)
        self.put('>Q', 48, len(self.data) - self.cluster)
        self.put('>I', 56, 1)
        return True

    def snapshot_incomplete(self):
        """Entries without the size of the disk, as old programs made them."""
        if not self.snapshots or self.get('>I', 4) < 3:
            return False
        entries = []
        for at in self.snapshots:
            fixed, texts = self.data[at : at + 40], at + 40 + self.get('>I', at + 36)
            length = self.get('>H', at + 12) + self.get('>H', at + 14)
            kept = self.rng.choice((0, 8))
            struct.pack_into('>I', fixed, 36, kept)
            entries.append(fixed + self.data[at + 40 : at + 40 + kept] + self.data[texts : texts + length])
        table = b''.join(entry + bytes(-len(entry) % 8) for entry in entries)
        self.data[self.snapshots[0] : self.snapshots[0] + len(table)] = table
        self.snapshots = list(self.find_snapshots())
        return True

    def snapshot_l1(self):
        if not self.snapshots:
            return False
        start = self.get('>Q', self.rng.choice(self.snapshots))
        return self.change(self.used([start]), lambda entry: self.rng.choice((0, entry | 1 << 60)))

    def snapshot_unaligned(self):
        return self.cluster > 512 and self.change(self.snapshots, lambda offset: offset + 512)

    def snapshot_large(self):
        return self.change([at + 8 for at in self.snapshots], lambda word: word | 1 << 63)

    def shorter(self):
        cut = self.rng.choice((1, 2, 5)) * self.cluster
        if len(self.data) - cut < self.cluster * 8:
            return False
        del self.data[-cut:]
        return True


# What can be put right without losing anything that can be read, and what cannot.
REPAIRABLE = (
    'refcount_zero refcount_larger refcount_smaller leak l2_copied l1_copied l2_dropped l1_dropped block_dropped '
    'block_reserved block_beyond block_twice block_is_data table_dropped snapshot_incomplete'
).split()
OTHERS = (
    'l2_twice l2_into_metadata l2_beyond l2_unaligned l2_reserved l1_reserved compressed_copied subclusters_both '
    'subclusters_nowhere snapshot_l1 snapshot_unaligned snapshot_large shorter'
).split()
