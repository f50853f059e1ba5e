# SPDX-License-Identifier: Apache-2.0
"""change-backing-file rewrites the header of an image: whatever the cluster size and the names before and after, other
programs find the new name, its format and the same contents."""

import shutil

import pytest

from lib import images
from lib.qmp import QmpError
from lib.tools import output, run
from lib.workload import SECTOR

pytestmark = pytest.mark.sanitize

SIZE = 1 << 20


def stored(path):
    """(name, format) of the backing file."""
    info = output('qemu-img', 'info', '-U', path).splitlines()
    shown = dict(text.split(': ', 1) for text in info if text.startswith('backing file'))
    return shown.get('backing file', '').split(' (actual')[0], shown.get('backing file format')


@pytest.mark.parametrize('cluster_size', (512, 1024, 4096, 65536))
@pytest.mark.parametrize('compat', ('0.10', '1.1'))
@pytest.mark.parametrize('backing', ('raw', 'qcow2'))
def test_names_come_and_go(daemon, tmp, rng, cluster_size, compat, backing):
    base = tmp / 'base'
    run('qemu-img', 'create', '-q', '-f', backing, base, str(SIZE))
    image = tmp / 'top.qcow2'
    options = f'cluster_size={cluster_size},compat={compat}'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, '-b', 'base', '-F', backing, image, cwd=tmp)
    images.write_some(image, rng, SIZE)
    content = images.to_raw(image)
    served = daemon('--blockdev', f'qcow2,node-name=t,file.driver=file,file.filename={image}')
    last = 'base'
    for _ in range(12):
        name = 'x' * rng.choice((1, 7, 8, 9, 60, 200, 400, rng.randrange(1, 1024)))
        try:
            served.cmd('change-backing-file', device='t', image_node_name='t', backing_file=name)
            last = name
        except QmpError:
            assert cluster_size <= 4096  # two long names do not fit at the same time
        assert stored(image) == (last, backing)
    served.cmd('change-backing-file', device='t', image_node_name='t', backing_file='./base')
    served.quit()
    assert stored(image) == ('./base', backing)
    images.check(image)
    assert images.to_raw(image) == content


def test_no_write_between_is_dangerous(daemon, tmp, rng):
    """The place of the old name is untouched while the header may still point there."""
    image, base = tmp / 'top.qcow2', tmp / 'base'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', base, str(SIZE))
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', image)
    before = image.read_bytes()
    served = daemon('--blockdev', f'qcow2,node-name=t,file.driver=file,file.filename={image}')
    served.cmd('change-backing-file', device='t', image_node_name='t', backing_file='y' * rng.randrange(1, 1024))
    served.quit()
    after = image.read_bytes()
    at, length = int.from_bytes(before[8:16], 'big'), int.from_bytes(before[16:20], 'big')
    assert before[at : at + length] == after[at : at + length] == str(base).encode()
    # Cut off before the header was written: the old name with the new one somewhere behind it.
    torn = tmp / 'torn.qcow2'
    shutil.copy(image, torn)
    with open(torn, 'r+b') as file:
        file.write(before[:SECTOR])
    assert stored(torn) == (str(base), 'qcow2')
    images.check(torn)


@pytest.mark.parametrize('name', ('', 'base', './' * 280 + 'base'), ids=('none', 'short', 'long'))
def test_header_without_room_behind_its_extensions(daemon, tmp, name):
    """Old programs put the name right behind the header: nothing ends the extensions but the name itself."""
    image, base = tmp / 'top.qcow2', tmp / 'base'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', base, str(SIZE))
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', '-b', base, '-F', 'qcow2', image)
    header = bytearray(image.read_bytes()[:1024])
    header[8:20] = (72).to_bytes(8, 'big') + len(str(base)).to_bytes(4, 'big')
    header[72:] = str(base).encode().ljust(1024 - 72, b'\xff')
    with open(image, 'r+b') as file:
        file.write(header)
    assert stored(image) == (str(base), None)
    served = daemon(
        '--blockdev', f'qcow2,node-name=t,file.driver=file,file.filename={image},backing.driver=null-co,backing.size={SIZE}'
    )
    served.cmd('change-backing-file', device='t', image_node_name='t', backing_file=name)
    served.quit()
    assert stored(image)[0] == name
    images.check(image)
