# SPDX-License-Identifier: Apache-2.0
"""The vhost-user examples of the reference's manuals run unchanged: qemu-storage-daemon(1) for the daemon, the chapter
on vhost-user back ends for QEMU."""

import json
import random
import re
import socket

import pytest

from lib import images, vhost_guest
from lib.guest import Guest, start_or_skip
from lib.tools import need, run, wait_until
from lib.vhost_guest import Disk
from test_documented_examples import shell  # noqa: F401: a fixture

pytestmark = pytest.mark.guest

EXPORT = r"""
qemu-storage-daemon \
    --blockdev driver=file,node-name=file,filename=disk.qcow2 \
    --blockdev driver=qcow2,node-name=qcow2,file=file \
    --export type=vhost-user-blk,id=export,addr.type=unix,addr.path=vhost-user-blk.sock,node-name=qcow2
"""
QEMU = '-chardev socket,id=ba1,path=vhost-user-blk.sock -device vhost-user-blk-pci,chardev=ba1,addr=0x10'
SHARED_MEMORY = '-object memory-backend-memfd,id=mem,size=4G,share=on -numa node,memdev=mem'
PASSED = (
    '--export',
    'type=vhost-user-blk,id=export,node-name=disk,addr.type=fd,addr.str={fd},writable=on,logical-block-size=4096,'
    'num-queues=2',
)
PASSED_QEMU = '-chardev socket,id=ba2,path=passed.sock -device vhost-user-blk-pci,chardev=ba2,num-queues=2,addr=0x11'


def test_examples_of_the_manuals(tmp, daemon, shell):  # noqa: F811
    need('qemu-system-x86_64', 'qemu-img')
    read_only = Disk('disk', 'qcow2', False, 1, 0x10, tmp)
    passed = Disk('passed', 'raw', False, 2, 0x11, tmp)
    for disk in (read_only, passed):
        disk.create()
    images.write_some(read_only.image, random.Random(1), read_only.size)
    before, expected = read_only.image.read_bytes(), read_only.content_sum(read_only.size)
    shell(EXPORT)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp / 'passed.sock'))
        listener.listen()
        fd = listener.fileno()
        backend = daemon(
            '--blockdev',
            f'driver=file,node-name=disk,filename={passed.image}',
            *[word.format(fd=fd) for word in PASSED],
            pass_fds=(fd,),
        )
    wait_until((tmp / 'vhost-user-blk.sock').exists, 'the socket')
    arguments = f'{QEMU} {SHARED_MEMORY} {PASSED_QEMU}'.replace('path=', f'path={tmp}/').split()
    guest = Guest(memory=4096, disk_tools=True, files=[vhost_guest.CONTENT_MODULE], qemu_args=arguments)
    described = json.dumps([disk.for_guest() for disk in (read_only, passed)])
    with start_or_skip(guest, 'vhost_examples.py', [described]) as machine:
        result = machine.finish(400)
    backend.quit()
    result.verify()
    sums = dict(re.findall(r'^sum (\S+) (\S+)$', result.output, re.MULTILINE))
    assert read_only.image.read_bytes() == before
    assert sums == {read_only.id: expected, passed.id: passed.content_sum(passed.size)}
    run('e2fsck', '-fn', passed.image)
