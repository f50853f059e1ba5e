# SPDX-License-Identifier: Apache-2.0
"""The command granaryctl: what it prints and returns, on images and on nodes of a running daemon."""

import json
import os
import pathlib
import re
import socket
import subprocess
import threading

import pytest

from lib import images
from lib.daemon import BINARY, monitor_at
from lib.qcow2damage import Damage
from lib.tools import TOP, need, run

PROGRAM = pathlib.Path(os.path.realpath(BINARY)).with_name('granaryctl')


def ctl(*arguments):
    return subprocess.run(
        [str(PROGRAM), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
        timeout=120,
    )


@pytest.fixture
def image(tmp):
    need('qemu-img', 'qemu-io')
    path = tmp / 'image.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', path, '4M')
    images.qemu_io(path, ['write -P 1 0 1M'])
    return path


def hurt(path, rng, *kinds):
    damage = Damage(path, rng)
    for kind in kinds:
        assert getattr(damage, kind)()
    damage.save()


def test_clean(image):
    done = ctl('check', image)
    assert done.returncode == 0 and done.stderr == ''
    assert done.stdout.splitlines()[0] == 'The image is consistent.'
    assert '256 of 1024 clusters are allocated (25.00%)' in done.stdout


def test_leaks(image, rng):
    hurt(image, rng, 'leak')
    before = image.read_bytes()
    done = ctl('check', image)
    assert done.returncode == 3 and '1 clusters are leaked' in done.stdout
    assert 'leaked' in done.stderr
    assert image.read_bytes() == before, 'a check changes nothing'
    done = ctl('check', '--repair', 'leaks', '--json', image)
    assert done.returncode == 0
    counts = json.loads(done.stdout)
    assert counts['leaks-fixed'] == 1 and 'leaks' not in counts and counts['filename'] == str(image)
    images.check(image)


def test_corruptions(image, rng):
    content = images.to_raw(image)
    hurt(image, rng, 'refcount_zero')
    assert ctl('check', image).returncode == 2
    assert ctl('check', '-r', 'leaks', image).returncode == 2
    assert ctl('check', '-r', 'all', image).returncode == 0
    assert ctl('check', image).returncode == 0
    images.check(image)
    assert images.to_raw(image) == content


def test_marked_corrupt(image, rng, daemon):
    """An image that no daemon opens for writing any more is repaired, and opens again."""
    hurt(image, rng, 'l2_copied')
    images.patch(image, 79, b'\2')
    served = daemon()
    options = {'driver': 'qcow2', 'node_name': 'q', 'file': {'driver': 'file', 'filename': str(image)}}
    assert served.qmp.error('blockdev-add', **options).desc.endswith('Image is corrupt; cannot be opened read/write')
    assert ctl('check', image).returncode == 2
    assert ctl('check', '--repair=all', image).returncode == 0
    served.blockdev_add(**options)
    served.stop()
    images.check(image)


def test_running_daemon(image, rng, daemon):
    hurt(image, rng, 'leak', 'l2_copied')
    served = daemon()
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(image)})
    path = served.directory / 'ctl.sock'
    done = ctl('check', image, '--repair', 'leaks')
    assert done.returncode == 1 and 'lock' in done.stderr, 'the image is in use'
    served.stop()
    served = daemon(
        '--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={image}',
        *monitor_at(path),
    )
    done = ctl('check', '--connect', path, 'q')
    assert done.returncode == 2, done
    done = ctl('check', '--connect', path, '--repair', 'all', 'q')
    assert done.returncode == 0, done
    done = ctl('check', '--connect', path, 'r')
    assert done.returncode == 1 and done.stderr == "granaryctl: r: Cannot find node 'r'\n"
    served.stop()
    images.check(image)


@pytest.mark.parametrize('answer', [b'', b'hello\r\n', b'{"QMP": 1}\n{"return": {}}\n{"nothing": 1}\n', b'[1]\n'])
def test_bad_daemons(answer, tmp):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp / 's'))
    listener.listen()

    def serve():
        peer, _ = listener.accept()
        peer.sendall(answer)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(4096):
            pass
        peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    done = ctl('check', '--connect', tmp / 's', 'q')
    thread.join()
    listener.close()
    assert done.returncode == 1 and re.fullmatch(r'granaryctl: q: .*\n', done.stderr), done


@pytest.mark.parametrize(
    'arguments, text',
    [
        ((), 'a command is missing'),
        (('chekc',), "no command 'chekc'"),
        (('check',), 'takes one image'),
        (('check', 'a', 'b'), 'takes one image'),
        (('check', '--connect', 's'), 'takes one node'),
        (('check', '--repair', 'some', 'a'), "not 'some'"),
        (('check', '--wrong', 'a'), 'wrong'),
        (('check', '/missing/image'), 'No such file'),
        (('check', '--connect', '/missing/socket', 'q'), 'does the daemon run'),
    ],
)
def test_mistakes(arguments, text):
    done = ctl(*arguments)
    assert done.returncode == 1 and text in done.stderr and done.stdout == ''


def test_not_an_image(tmp):
    (tmp / 'file').write_bytes(bytes(100000))
    done = ctl('check', tmp / 'file')
    assert done.returncode == 1 and 'not in qcow2 format' in done.stderr


def test_help_and_manual():
    manual = (TOP / 'docs' / 'granaryctl.1').read_text()
    assert re.fullmatch(r'granaryctl \d+\.\d+\.\d+\n', ctl('--version').stdout)
    assert 'check' in ctl('--help').stdout
    for option in re.findall(r'--(\w+)=?', ctl('check', '--help').stdout):
        assert f'Fl -{option}' in manual, option
