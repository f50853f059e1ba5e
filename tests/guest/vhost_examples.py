# SPDX-License-Identifier: Apache-2.0
"""A disk that the manual's example exports read-only, and one from a passed socket with all options."""

import glob
import json
import os
import sys

from lab import check, main, modprobe, read, run, wait
from vhost_content import content_sum

wanted = json.loads(sys.argv.pop(1))


def found(what):
    pattern = f'/sys/bus/pci/devices/0000:00:{what["slot"]:02x}.0/virtio*/block/vd*'
    return os.path.basename(wait(lambda: glob.glob(pattern), f'no disk in slot {what["slot"]:#x}', 60)[0])


def print_sum(what, name):
    print(f'sum {what["id"]} {content_sum(f"/dev/{name}", what["size"])}', flush=True)


@check
def read_only_disk():
    modprobe('virtio_pci', 'virtio_blk', 'ext4')
    name = found(wanted[0])
    assert read(f'/sys/block/{name}/ro') == '1'
    assert run('dd', 'if=/dev/zero', f'of=/dev/{name}', 'bs=4096', 'count=1', 'conv=fsync', ok=None).returncode
    print_sum(wanted[0], name)


@check
def large_blocks():
    name = found(wanted[1])
    assert read(f'/sys/block/{name}/queue/logical_block_size') == '4096'
    run('mke2fs', '-q', '-t', 'ext4', f'/dev/{name}', timeout=60)
    os.makedirs('/mnt/a')
    run('mount', f'/dev/{name}', '/mnt/a')
    run('fio', '--name=a', '--filename=/mnt/a/load', '--rw=randrw', '--bs=4k', '--size=4M', '--direct=1',
        '--ioengine=psync', '--verify=crc32c', '--output-format=terse')  # fmt: skip
    run('umount', '/mnt/a')
    print_sum(wanted[1], name)


main()
