# SPDX-License-Identifier: Apache-2.0
"""Image locks are the reference's: a daemon and a qemu-img or qemu-io cannot both write, in either direction."""

import subprocess

import pytest

from lib.program import StartError
from lib.tools import need, output, run, wait_until


@pytest.fixture
def image(tmp):
    need('qemu-img', 'qemu-io')
    path = tmp / 'image.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', path, '1M')
    return path


def node(path, more=''):
    return f'driver=qcow2,node-name=q,file.driver=file,file.filename={path}{more}'


def test_daemon_first(image, daemon):
    daemon('--blockdev', node(image))
    done = run('qemu-io', '-f', 'qcow2', '-c', 'write 0 512', image, ok=(1,))
    assert b'Failed to get "write" lock' in done.stderr
    done = run('qemu-img', 'convert', '-O', 'raw', image, f'{image}.raw', ok=(1,))
    assert b'Failed to get shared "write" lock' in done.stderr
    assert '"virtual-size": 1048576' in output('qemu-img', 'info', '-U', '--output=json', image)


def test_other_writer_first(image, daemon):
    writer = subprocess.Popen(
        ['qemu-io', '-f', 'qcow2', str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        writer.stdin.write(b'write 0 512\n')
        writer.stdin.flush()
        wait_until(lambda: b'wrote' in writer.stdout.readline(), 'the write')
        with pytest.raises(StartError) as caught:
            daemon('--blockdev', node(image))
        assert 'Failed to get "write" lock' in caught.value.stderr
        assert f'Is another process using the image [{image}]?' in caught.value.stderr
        served = daemon()
        error = served.qmp.error(
            'blockdev-add', driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(image)}
        )
        assert error.desc.startswith('Failed to get "write" lock')
        error = served.qmp.error(
            'blockdev-add',
            driver='qcow2',
            node_name='q',
            read_only=True,
            file={'driver': 'file', 'filename': str(image)},
        )
        assert error.desc.startswith('Failed to get shared "write" lock')
        served.blockdev_add(
            driver='qcow2',
            node_name='q',
            read_only=True,
            force_share=True,
            file={'driver': 'file', 'filename': str(image)},
        )
    finally:
        writer.communicate(b'quit\n')


def test_readers_share(image, daemon):
    daemon('--blockdev', node(image, ',read-only=on'))
    run('qemu-img', 'convert', '-O', 'raw', image, f'{image}.raw')
    done = run('qemu-io', '-f', 'qcow2', '-c', 'write 0 512', image, ok=(1,))
    assert b'lock' in done.stderr


def test_locks_go_with_the_node(image, daemon):
    served = daemon('--blockdev', node(image))
    served.cmd('blockdev-del', node_name='q')
    run('qemu-io', '-f', 'qcow2', '-c', 'write 0 512', image)


def test_locks_go_with_a_killed_daemon(image, daemon):
    served = daemon('--blockdev', node(image))
    served.kill()
    run('qemu-io', '-f', 'qcow2', '-c', 'write 0 512', image)


def test_two_daemons(image, daemon):
    daemon('--blockdev', node(image))
    with pytest.raises(StartError, match='Failed to get "write" lock'):
        daemon('--blockdev', node(image))


def test_locking_off(image, daemon):
    daemon('--blockdev', node(image))
    daemon('--blockdev', node(image, ',file.locking=off'))


def test_raw_file_export_takes_no_exclusive_lock(image, daemon, tmp):
    """A bare file node shares everything but resizing."""
    (tmp / 'raw.img').write_bytes(bytes(65536))
    daemon(
        '--blockdev',
        f'file,node-name=f,filename={tmp}/raw.img',
        '--export',
        'nbd,id=e,node-name=f,writable=on',
        nbd=True,
    )
    daemon(
        '--blockdev',
        f'file,node-name=f,filename={tmp}/raw.img',
        '--export',
        'nbd,id=e,node-name=f,writable=on',
        nbd=True,
    )


def test_backing_file_is_locked_against_writers(image, daemon, tmp):
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', image, '-F', 'qcow2', tmp / 'top.qcow2')
    daemon('--blockdev', node(tmp / 'top.qcow2'))
    done = run('qemu-io', '-f', 'qcow2', '-c', 'write 0 512', image, ok=(1,))
    assert b'Failed to get "write" lock' in done.stderr
    run('qemu-img', 'convert', '-O', 'raw', image, f'{image}.raw')
