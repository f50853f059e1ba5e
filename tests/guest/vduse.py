# SPDX-License-Identifier: Apache-2.0
"""VDUSE: the daemon runs in the guest and exports a disk to the guest's own kernel, which finds it on its vDPA bus."""

import os
import signal
import subprocess

from lab import check, main, modprobe, read, run, wait
from lib.qmp import Qmp
from vhost_content import content_sum

MIB = 1 << 20
SIZE = 40 * MIB
IMAGE = '/run/disk.qcow2'
NAME = 'granary0'
DEVICE = f'/dev/vduse/{NAME}'
QUEUES = 2
FIO = ('--direct=1', '--ioengine=libaio', '--verify=crc32c', '--verify_fatal=1', '--output-format=terse')
EXPORT = {'type': 'vduse-blk', 'id': 'export', 'node-name': 'disk', 'name': NAME, 'writable': True,
          'num-queues': QUEUES, 'serial': 'granary-serial'}  # fmt: skip
COMPLAINTS = ('I/O error', 'is not a head', 'EXT4-fs error', 'vduse:')


class Daemon:
    count = 0

    def __init__(self):
        Daemon.count += 1
        path = f'/run/qmp{Daemon.count}'
        with open('/run/daemon.log', 'ab') as log:
            self.process = subprocess.Popen(
                ['/usr/bin/qemu-storage-daemon', '--chardev', f'socket,id=qmp,path={path},server=on,wait=off',
                 '--monitor', 'chardev=qmp', '--pidfile', f'{path}.pid',
                 '--blockdev', f'file,node-name=file,filename={IMAGE},discard=unmap',
                 '--blockdev', 'qcow2,node-name=disk,file=file,discard=unmap'],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
        wait(lambda: self.ended() or os.path.exists(f'{path}.pid'), 'the pid file', 30)
        assert not self.ended(), read('/run/daemon.log')
        self.qmp = Qmp.connect(path)

    def ended(self):
        return self.process.poll() is not None

    def export(self, **options):
        self.qmp.cmd_args('block-export-add', {**EXPORT, **options})

    def remove_export(self):
        self.qmp.cmd('block-export-del', id='export')
        self.qmp.wait_event('BLOCK_EXPORT_DELETED', id='export')

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.qmp.close()


daemon = None


def attach():
    """Adds the device to the vDPA bus; returns its disk."""
    run('vdpa', 'dev', 'add', 'name', NAME, 'mgmtdev', 'vduse', timeout=60)
    return disk_of_the_device()


def disk_of_the_device():
    folder = f'/sys/bus/vdpa/devices/{NAME}'

    def found():
        for virtio in (name for name in os.listdir(folder) if name.startswith('virtio')):
            if os.path.isdir(f'{folder}/{virtio}/block'):
                return os.listdir(f'{folder}/{virtio}/block')[0]
        return None

    name = wait(found, 'no disk', 60)
    wait(lambda: os.path.exists(f'/dev/{name}'), f'no /dev/{name}')
    return name


def detach(name):
    run('vdpa', 'dev', 'del', NAME, timeout=60)
    wait(lambda: not os.path.exists(f'/sys/block/{name}'), f'{name} is not gone')


def fio(*options, timeout=100):
    run('fio', '--name=load', *options, *FIO, cwd='/run', timeout=timeout)


disk = None


@check(deadline=100)
def device_appears():
    global daemon, disk
    modprobe('vduse', 'virtio_blk', 'virtio_vdpa', 'ext4')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', IMAGE, SIZE)
    daemon = Daemon()
    daemon.export()
    assert os.path.exists(DEVICE)
    disk = attach()
    assert read(f'/sys/block/{disk}/serial') == 'granary-serial'
    assert int(read(f'/sys/block/{disk}/size')) * 512 == SIZE
    assert len(os.listdir(f'/sys/block/{disk}/mq')) == QUEUES
    assert read(f'/sys/block/{disk}/device/features')[34] == '1', 'no packed rings'


@check(deadline=200)
def file_system_with_verified_load():
    run('mke2fs', '-q', '-t', 'ext4', f'/dev/{disk}', timeout=60)
    os.makedirs('/mnt/a')
    run('mount', f'/dev/{disk}', '/mnt/a')
    fio('--filename=/mnt/a/load', '--rw=randrw', '--bs=4k', '--size=4M', '--iodepth=16', '--fsync=32')
    with open('/mnt/a/random', 'wb') as file:
        file.write(os.urandom(4 * MIB))
    run('umount', '/mnt/a')
    run('e2fsck', '-fn', f'/dev/{disk}')


@check(deadline=200)
def verified_load_on_all_queues():
    jobs = (f'--numjobs={QUEUES}', '--size=8M', '--offset=16M', '--offset_increment=8M', '--iodepth=16',
            f'--cpus_allowed=0-{QUEUES - 1}', '--cpus_allowed_policy=split')  # fmt: skip
    fio(f'--filename=/dev/{disk}', '--rw=randwrite', '--bs=4k', *jobs)
    fio(f'--filename=/dev/{disk}', '--rw=write', '--bs=512k', *jobs)


@check
def discard_gives_zeroes():
    run('blkdiscard', '-o', 20 * MIB, '-l', 4 * MIB, f'/dev/{disk}')
    run('blkdiscard', '-z', '-o', 26 * MIB, '-l', MIB, f'/dev/{disk}')
    with open(f'/dev/{disk}', 'rb') as file:
        for offset, size, zero in ((20, 4, True), (24, 1, False), (26, 1, True), (27, 1, False)):
            file.seek(offset * MIB)
            assert (file.read(size * MIB) == bytes(size * MIB)) == zero, f'{offset} MiB'


@check
def resize_is_seen():
    global SIZE
    SIZE += 8 * MIB
    daemon.qmp.cmd('block_resize', node_name='disk', size=SIZE)
    wait(lambda: int(read(f'/sys/block/{disk}/size')) * 512 == SIZE, 'the disk does not grow', 30)
    fio(f'--filename=/dev/{disk}', '--rw=write', '--bs=64k', f'--offset={SIZE - 8 * MIB}', '--size=8M', '--iodepth=4')


@check(deadline=400)
def restarts_under_load():
    """The device stays on the bus while its daemon is killed and started again; the guest's requests wait."""
    global daemon
    load = ['fio', '--name=load', f'--filename=/dev/{disk}', '--rw=randwrite', '--bssplit=4k/80:16k/20', '--size=16M',
            '--offset=16M', '--iodepth=16', '--loops=3', *FIO]  # fmt: skip
    writer = subprocess.Popen(load, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd='/run')
    for least in (1, 50, 400):
        before = writes()
        wait(lambda b=before, n=least: writes() >= b + n or writer.poll() is not None, 'load', 60)
        assert writer.poll() is None, 'the load is over already'
        daemon.kill()
        daemon = Daemon()
        daemon.export()
    said = writer.communicate(timeout=300)[0]
    assert writer.returncode == 0, said.decode()[:600]


def writes():
    return int(read(f'/sys/block/{disk}/stat').split()[4])


@check(deadline=200)
def removal_and_return():
    global disk
    before = content_sum(f'/dev/{disk}', SIZE)
    detach(disk)
    disk = attach()
    assert content_sum(f'/dev/{disk}', SIZE) == before
    detach(disk)
    daemon.remove_export()
    assert not os.path.exists(DEVICE)
    daemon.export(writable=False)
    disk = attach()
    assert read(f'/sys/block/{disk}/ro') == '1'
    assert content_sum(f'/dev/{disk}', SIZE) == before
    detach(disk)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(60) == 0
    assert not os.path.exists(DEVICE)
    run('qemu-img', 'check', '-q', '-f', 'qcow2', IMAGE, ok=(0, 3))  # 3: clusters that killed daemons had just taken
    run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', IMAGE, '/run/disk.raw')
    assert content_sum('/run/disk.raw', SIZE) == before


@check
def no_complaints_of_the_kernel():
    lines = run('dmesg').stdout.splitlines()
    complaints = [line for line in lines if any(word in line for word in COMPLAINTS)]
    assert not complaints, '\n'.join(complaints)


main()
