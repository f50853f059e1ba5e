# SPDX-License-Identifier: Apache-2.0
"""vhost-user disks of guests: their images, the daemon's options, QEMU's options, and what must be true afterwards."""

import dataclasses
import json
import pathlib
import sys

from lib import images
from lib.tools import TOP, output, run

sys.path.insert(0, str(TOP / 'tests' / 'guest'))
from vhost_content import content_sum  # noqa: E402

MIB = 1 << 20
CONTENT_MODULE = (TOP / 'tests/guest/vhost_content.py', '/lab/vhost_content.py')
FIRST_SLOT = 0x10
DEFAULT_SERIAL = 'vhost_user_blk'


@dataclasses.dataclass
class Disk:
    """A disk: its image, export and device. The names of all of them begin with `id`."""

    id: str
    format: str
    packed: bool
    queues: int
    slot: int
    folder: pathlib.Path
    size: int = 64 * MIB
    serial: str = ''

    @property
    def image(self):
        return self.folder / f'{self.id}.{self.format}'

    @property
    def socket(self):
        return self.folder / f'{self.id}.sock'

    @property
    def node(self):
        """The node to export."""
        return self.id if self.format != 'raw' else f'{self.id}-file'

    def create(self):
        run('qemu-img', 'create', '-q', '-f', self.format, self.image, self.size)

    def daemon_options(self):
        options = ['--blockdev', f'file,node-name={self.id}-file,filename={self.image},discard=unmap']
        if self.format != 'raw':
            options += ['--blockdev', f'{self.format},node-name={self.id},file={self.id}-file,discard=unmap']
        export = f'vhost-user-blk,id={self.id},node-name={self.node},writable=on,num-queues={self.queues}'
        export += f',addr.type=unix,addr.path={self.socket}'
        return options + ['--export', export + (f',serial={self.serial}' if self.serial else '')]

    def chardev(self):
        return f'socket,id={self.id}-socket,path={self.socket},reconnect=1'

    def device(self):
        """As the arguments of device_add."""
        return {
            'driver': 'vhost-user-blk-pci',
            'id': self.id,
            'chardev': f'{self.id}-socket',
            'num-queues': self.queues,
            'packed': self.packed,
            'addr': f'{self.slot:#x}',
        }

    def qemu_options(self):
        return ['-chardev', self.chardev(), '-device', json.dumps(self.device())]

    def for_guest(self, **more):
        return {
            'id': self.id,
            'slot': self.slot,
            'size': self.size,
            'queues': self.queues,
            'packed': self.packed,
            'serial': self.serial or DEFAULT_SERIAL,
            **more,
        }

    def content_sum(self, size):
        """As the reference reads the image."""
        if self.format == 'raw':
            return content_sum(self.image, size)
        raw = self.folder / f'{self.id}.copy'
        run('qemu-img', 'convert', '-f', self.format, '-O', 'raw', self.image, raw)
        assert raw.stat().st_size == size
        return content_sum(raw, size)

    def check(self, leaks_allowed=False):
        """The image is sound: no error, and no leak unless a daemon was killed."""
        if self.format == 'qcow2':
            images.check(self.image, leaks_allowed)

    def holes(self):
        """Ranges without data, as (offset, length)."""
        extents = json.loads(output('qemu-img', 'map', '--output=json', '-f', self.format, self.image))
        return [(extent['start'], extent['length']) for extent in extents if not extent['data']]


def make_disks(folder, layout, **options):
    """A disk for each (format, packed, queues) of the layout."""
    disks = []
    for number, (image_format, packed, queues) in enumerate(layout):
        disks.append(
            Disk(f'disk{number}', image_format, packed, queues, FIRST_SLOT + number, folder, **options)
        )
        disks[-1].create()
    return disks


def shared_memory(megabytes):
    """QEMU's options for memory that a vhost-user back end can map."""
    return ['-object', f'memory-backend-memfd,id=mem,size={megabytes}M,share=on', '-numa', 'node,memdev=mem']
