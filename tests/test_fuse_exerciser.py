# SPDX-License-Identifier: Apache-2.0
"""Anything a program may do to a file, at random, on an exported one; file systems inside; many operations without a leak."""

import os
import pathlib
import subprocess

import pytest

from lib.exerciser import Exerciser
from lib.fusefile import check_image, cleaned, export_option, need_fuse
from lib.tools import need, run

MIB = 1 << 20


def serve(daemon, image, form, mountpoint, *extra, **options):
    mountpoint.touch()
    return daemon(
        '--blockdev',
        f'driver={form},node-name=n0,discard=unmap,file.driver=file,file.filename={image},file.discard=unmap',
        *extra,
        '--export',
        export_option(mountpoint, **options),
    )


@pytest.mark.sanitize
@pytest.mark.parametrize('grows', [False, True], ids=['fixed', 'growable'])
@pytest.mark.parametrize('form', ['raw', 'qcow2'])
def test_anything_at_random(form, grows, daemon, tmp, rng):
    need_fuse()
    need('qemu-img')
    image, mountpoint = tmp / 'image', tmp / 'mountpoint'
    run('qemu-img', 'create', '-q', '-f', form, image, MIB if grows else 8 * MIB)
    with cleaned(mountpoint):
        served = serve(daemon, image, form, mountpoint, growable='on' if grows else 'off')
        exerciser = Exerciser(mountpoint, rng, MIB if grows else 8 * MIB, 8 * MIB, allocates=form == 'raw')
        exerciser.run(1500)
        exerciser.compare_all()
        exerciser.close()
        served.stop()
    check_image(image, form, exerciser.shadow)


def test_several_programs_on_several_threads(daemon, tmp, rng):
    """Each has a file of its own; the files are exports on one pair of threads."""
    need_fuse()
    need('qemu-img')
    args = ['--object', 'iothread,id=a', '--object', 'iothread,id=b']
    for i in range(3):
        run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / f'q{i}', 4 * MIB)
        (tmp / f'm{i}').touch()
        args += ['--blockdev', f'qcow2,node-name=n{i},discard=unmap,file.driver=file,file.filename={tmp}/q{i}']
        args += ['--export', export_option(tmp / f'm{i}', f'n{i}', f'e{i}') + ',iothread.0=a,iothread.1=b']
    with cleaned(*(tmp / f'm{i}' for i in range(3))):
        served = daemon(*args)
        exercisers = [Exerciser(tmp / f'm{i}', rng, 4 * MIB) for i in range(3)]
        for _ in range(30):
            for exerciser in exercisers:
                exerciser.run(20)
        for exerciser in exercisers:
            exerciser.compare_all()
            exerciser.close()
        served.stop()
    for i, exerciser in enumerate(exercisers):
        check_image(tmp / f'q{i}', 'qcow2', exerciser.shadow)


def test_a_file_system_inside(daemon, tmp, rng):
    """mkfs on the file, mounted through a loop device."""
    need_fuse()
    need('qemu-img', 'mkfs.ext4', 'losetup', 'fsck.ext4')
    image, mountpoint, inside = tmp / 'image', tmp / 'mountpoint', tmp / 'inside'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', image, 64 * MIB)
    inside.mkdir()
    files = {f'f{i}': rng.randbytes(rng.randrange(1, MIB)) for i in range(20)}
    with cleaned(mountpoint):
        served = serve(daemon, image, 'qcow2', mountpoint)
        run('mkfs.ext4', '-q', '-F', mountpoint)
        for check in (False, True):
            run('mount', '-o', 'loop', mountpoint, inside)
            try:
                for name, data in files.items():
                    if check:
                        assert (inside / name).read_bytes() == data
                    else:
                        (inside / name).write_bytes(data)
            finally:
                run('umount', inside)
        run('fsck.ext4', '-f', '-n', mountpoint)
        contents = mountpoint.read_bytes()
        served.stop()
    check_image(image, 'qcow2', contents)


def held(served):
    """(descriptors, mappings but for those of threads, bytes of memory) of the daemon; threads come when there is work."""
    proc = pathlib.Path(f'/proc/{served.process.pid}')
    mappings, threads = len((proc / 'maps').read_text().splitlines()), len(os.listdir(proc / 'task'))
    return len(os.listdir(proc / 'fd')), mappings - 4 * threads, served.memory()


def test_many_operations_leave_nothing_behind(daemon, tmp):
    """Thousands of opens, requests and exports: neither descriptors nor memory grow."""
    need_fuse()
    need('qemu-img', 'fio')
    image, mountpoint, other = tmp / 'image', tmp / 'mountpoint', tmp / 'other'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', image, 64 * MIB)
    other.touch()
    with cleaned(mountpoint, other):
        served = serve(daemon, image, 'qcow2', mountpoint, '--blockdev', 'null-co,node-name=n1,size=1048576')

        def use(rounds):
            for _ in range(rounds):
                for _ in range(100):
                    with open(mountpoint, 'r+b', buffering=0) as file:
                        file.write(b'x' * 5000)
                        file.read(100)
                for _ in range(3):
                    served.export('n1', 'x', kind='fuse', mountpoint=str(other))
                    assert other.read_bytes()[:10] == bytes(10)
                    served.unexport('x')
            subprocess.run(
                ['fio', '--name=x', f'--filename={mountpoint}', '--rw=randrw', '--bs=4k', '--size=32M', '--ioengine=libaio']
                + ['--iodepth=16', '--direct=1', '--verify=crc32c', '--number_ios=1500', '--verify_state_save=0'],
                check=True,
                stdout=subprocess.DEVNULL,
            )

        use(5)  # warms up
        before = held(served)
        use(20)
        after = held(served)
        assert after[0] <= before[0] + 2 and after[1] <= before[1] + 40, (before, after)
        assert after[2] <= before[2] + 4 * MIB, (before, after)
        served.stop()
    run('qemu-img', 'check', '-q', image)
