# SPDX-License-Identifier: Apache-2.0
"""host_device on a real block device (a loop device), with sectors of 512 and 4096 bytes, buffered and direct."""

import subprocess

import pytest

from lib.tools import need, need_root
from lib.workload import Workload

SIZE = 8 << 20


@pytest.fixture
def device(request, tmp, rng):
    """A loop device over a file of random bytes: (path of the device, contents)."""
    need_root('makes a loop device')
    need('losetup')
    backing = tmp / 'backing.img'
    content = rng.randbytes(SIZE)
    backing.write_bytes(content)
    made = subprocess.run(
        ['losetup', '--find', '--show', f'--sector-size={request.param}', backing],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f'no loop device can be made here: {made.stderr.strip()}')
    path = made.stdout.strip()
    yield path, content
    subprocess.run(['losetup', '--detach', path], check=True)


@pytest.mark.parametrize('device', [512, 4096], indirect=True)
@pytest.mark.parametrize('direct', ['off', 'on'])
def test_workload(device, direct, daemon, rng):
    path, content = device
    served = daemon(
        '--blockdev',
        f'host_device,node-name=d,filename={path},cache.direct={direct},discard=unmap',
        '--export',
        'nbd,id=e,node-name=d,writable=on',
        nbd=True,
    )
    handle = served.connect('d')
    assert handle.get_size() == SIZE
    work = Workload(handle, content, rng)
    work.run(rounds=20)
    work.compare_all()
    handle.flush()
    handle.shutdown()
    served.stop()
    with open(path, 'rb') as file:
        assert file.read() == bytes(work.shadow)


@pytest.mark.parametrize('device', [512], indirect=True)
def test_kinds_of_files_are_not_mixed_up(device, daemon, tmp):
    path, _ = device
    regular = tmp / 'regular.img'
    regular.write_bytes(bytes(4096))
    served = daemon()
    error = served.qmp.error('blockdev-add', driver='host_device', node_name='d', filename=str(regular))
    assert error.desc == "'host_device' driver requires '" + str(regular) + "' to be either a character or block device"
    error = served.qmp.error('blockdev-add', driver='file', node_name='f', filename=path)
    assert error.desc == f"'file' driver requires '{path}' to be a regular file"
