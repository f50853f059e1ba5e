# SPDX-License-Identifier: Apache-2.0
"""An exported file keeps what is written to it, however that is done."""

import mmap
import os
import shutil
import subprocess

import pytest

from lib.fusefile import check_image, cleaned, export_option, is_mounted, need_fuse, wait_unmounted
from lib.tools import need, output, run

MIB = 1 << 20
ENGINES = ('psync', 'libaio', 'io_uring')


def make_image(path, form, size=64 * MIB):
    run('qemu-img', 'create', '-q', '-f', form, path, size)


def serve(daemon, image, form, mountpoint, *extra, nbd=False, **options):
    return daemon(
        '--blockdev',
        f'driver=file,node-name=f0,filename={image}',
        '--blockdev',
        f'driver={form},node-name=n0,file=f0',
        '--export',
        export_option(mountpoint, **options),
        *extra,
        nbd=nbd,
    )


def fio(path, *jobs):
    """Each job writes its own 8 MiB at random, beside the others, and reads them back; fio compares."""
    common = dict(
        rw='randwrite', size=8 * MIB, verify='crc32c', verify_fatal=1, verify_state_save=0, end_fsync=1
    )
    common |= dict(allow_file_create=0)
    command = ['fio', f'--filename={path}', *[f'--{name}={value}' for name, value in common.items()]]
    for i, job in enumerate(jobs):
        settings = dict(offset=i * 8 * MIB, randseed=i + 1) | job
        command += [f'--name=job{i}', *[f'--{name}={value}' for name, value in settings.items()]]
    run(*command)


@pytest.mark.sanitize
@pytest.mark.parametrize('form', ['raw', 'qcow2'])
def test_many_writes_at_once_do_not_mix_up(form, daemon, tmp):
    need_fuse()
    need('qemu-img', 'fio')
    image, mountpoint = tmp / 'image', tmp / 'mountpoint'
    make_image(image, form)
    mountpoint.touch()
    with cleaned(mountpoint):
        served = serve(daemon, image, form, mountpoint)
        engines = [
            dict(ioengine=engine, direct=direct, iodepth=16, bs='4k')
            for engine in ENGINES
            for direct in (0, 1)
        ]
        fio(mountpoint, *engines)
        # and on what is allocated by now, by several threads
        fio(mountpoint, *[dict(ioengine='psync', direct=1, bsrange='512-256k', thread=1)] * 4)
        contents = mountpoint.read_bytes()
        served.stop()
    check_image(image, form, contents)


@pytest.mark.sanitize
@pytest.mark.parametrize('flags', [0, os.O_DIRECT], ids=['cached', 'direct'])
def test_shared_mappings_reach_the_image(flags, daemon, tmp, rng):
    """As a TPM emulator keeps its state."""
    need_fuse()
    need('qemu-img')
    image, mountpoint = tmp / 'image', tmp / 'mountpoint'
    make_image(image, 'qcow2', 8 * MIB)
    mountpoint.touch()
    expected = bytearray(8 * MIB)
    with cleaned(mountpoint):
        served = serve(daemon, image, 'qcow2', mountpoint)
        fd = os.open(mountpoint, os.O_RDWR | flags)
        with mmap.mmap(fd, 8 * MIB) as view:
            for _ in range(200):
                at, data = rng.randrange(8 * MIB - 5000), rng.randbytes(rng.randrange(1, 5000))
                view[at : at + len(data)] = expected[at : at + len(data)] = data
                if rng.random() < 0.05:
                    view.flush()
            os.fsync(fd)
            assert mountpoint.read_bytes() == expected
            assert view[:] == expected
        os.close(fd)
        served.stop()
    check_image(image, 'qcow2', expected)


@pytest.mark.sanitize
def test_an_image_under_its_own_name(daemon, tmp, rng):
    need_fuse()
    need('qemu-img')
    image = tmp / 'image.qcow2'
    data = rng.randbytes(3 * MIB)
    make_image(image, 'qcow2', 16 * MIB)
    with cleaned(image):
        served = serve(daemon, image, 'qcow2', image)
        assert os.stat(image).st_size == 16 * MIB
        with open(image, 'r+b') as file:
            file.seek(MIB)
            file.write(data)
        contents = image.read_bytes()
        assert contents[MIB : 4 * MIB] == data
        assert output('qemu-img', 'info', '-f', 'raw', image).count('16 MiB') == 1
        copy = tmp / 'copy.qcow2'
        run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', image, copy)
        served.kill()  # and the next one begins with what it has left
        assert is_mounted(image)
        served = serve(daemon, image, 'qcow2', image)
        assert image.read_bytes() == contents
        served.stop()
        assert not is_mounted(image)
    check_image(image, 'qcow2', contents)
    check_image(copy, 'qcow2', contents)


def test_what_other_clients_write_is_seen(daemon, tmp):
    """At once by direct readers and by whoever opens the file anew."""
    need_fuse()
    need('qemu-img')
    image, mountpoint = tmp / 'image', tmp / 'mountpoint'
    make_image(image, 'raw', 4 * MIB)
    mountpoint.touch()
    with cleaned(mountpoint):
        served = serve(
            daemon,
            image,
            'raw',
            mountpoint,
            '--export',
            'type=nbd,id=e1,node-name=n0,name=x,writable=on',
            nbd=True,
        )
        handle = served.connect('x')
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, 4096)
        for i in range(20):
            data = bytes([i + 1]) * 4096
            handle.pwrite(data, i * 4096)
            assert os.preadv(fd, [buffer], i * 4096) == 4096 and buffer[:] == data
            with open(mountpoint, 'rb') as file:
                assert file.read(20 * 4096)[i * 4096 : (i + 1) * 4096] == data
        os.close(fd)
        with open(mountpoint, 'r+b') as file:
            file.write(b'\xaa' * 8192)
        assert handle.pread(8192, 0) == b'\xaa' * 8192
        handle.shutdown()
        served.stop()


def test_a_growable_image_grows_by_writing(daemon, tmp, rng):
    need_fuse()
    need('qemu-img')
    image, mountpoint = tmp / 'image', tmp / 'mountpoint'
    make_image(image, 'qcow2', MIB)
    mountpoint.touch()
    data = rng.randbytes(5 * MIB + 512)
    with cleaned(mountpoint):
        served = serve(daemon, image, 'qcow2', mountpoint, growable='on')
        (tmp / 'source').write_bytes(data)
        shutil.copyfile(tmp / 'source', mountpoint)
        assert os.stat(mountpoint).st_size == len(data)
        with open(mountpoint, 'ab') as file:
            file.write(b'end')
        served.stop()
    check_image(image, 'qcow2', data + b'end' + bytes(509))


def test_a_loop_device_on_the_file(daemon, tmp):
    """A file system on a partition of the kernel's."""
    need_fuse()
    need('qemu-img', 'losetup', 'mke2fs', 'e2fsck')
    image, mountpoint = tmp / 'image', tmp / 'mountpoint'
    make_image(image, 'qcow2', 32 * MIB)
    mountpoint.touch()
    with cleaned(mountpoint):
        served = serve(daemon, image, 'qcow2', mountpoint)
        run('mke2fs', '-q', '-t', 'ext4', mountpoint)
        folder = tmp / 'folder'
        folder.mkdir()
        if subprocess.run(['mount', '-o', 'loop', str(mountpoint), str(folder)], check=False).returncode:
            served.stop()
            pytest.skip('loop devices cannot be used here')
        try:
            (folder / 'file').write_bytes(b'x' * MIB)
            assert (folder / 'file').read_bytes() == b'x' * MIB
        finally:
            run('umount', folder)
        run('e2fsck', '-f', '-n', mountpoint)
        served.stop()
        wait_unmounted(mountpoint)
    run('qemu-img', 'check', '-q', image)
