# SPDX-License-Identifier: Apache-2.0
"""Which files are opened because an image names them: --stored-names, and names that are never followed."""

import os
import struct

import pytest

from lib import images
from lib.program import StartError
from lib.tools import run

pytestmark = [pytest.mark.sanitize, pytest.mark.better]

SIZE = '1M'


@pytest.fixture
def pool(tmp):
    """Two folders with a base image each; image() makes one in the first that names what it is told to."""
    for folder in ('a', 'b'):
        (tmp / folder).mkdir()
        run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / folder / 'base.qcow2', SIZE)
    return tmp


def image(pool, name, *options):
    path = pool / 'a' / 'top.qcow2'
    backing = ('-b', name, '-F', 'qcow2') if name is not None else ()
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-u', *backing, *options, path, SIZE)
    return path


def start(daemon, path, *args):
    return daemon(*args, '--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={path}')


def refusal(daemon, path, *args):
    with pytest.raises(StartError) as caught:
        start(daemon, path, *args)
    assert caught.value.exit_code == 1
    return str(caught.value)


@pytest.mark.parametrize('name', ('base.qcow2', './base.qcow2', '../a/base.qcow2', '../b/base.qcow2'))
def test_any_local_path_is_followed_without_the_option(name, pool, daemon):
    served = start(daemon, image(pool, name))
    nodes = served.cmd('query-named-block-nodes', flat=True)
    assert len(nodes) == 4


@pytest.mark.parametrize('name', ('base.qcow2', './base.qcow2', '../a/base.qcow2', '../b/../a/base.qcow2'))
def test_a_folder_is_allowed(name, pool, daemon):
    start(daemon, image(pool, name), '--stored-names', pool / 'a')


def test_several_folders_are_allowed(pool, daemon):
    start(daemon, image(pool, '../b/base.qcow2'), '--stored-names', pool / 'a', '--stored-names', f'{pool}/b/')


@pytest.mark.parametrize('name', ('../b/base.qcow2', '{pool}/b/base.qcow2', 'link', '../ab/base.qcow2'))
def test_what_lies_elsewhere_is_refused(name, pool, daemon):
    os.symlink(pool / 'b' / 'base.qcow2', pool / 'a' / 'link')
    os.symlink(pool / 'b', pool / 'ab')
    text = refusal(daemon, image(pool, name.format(pool=pool)), '--stored-names', pool / 'a')
    assert 'which --stored-names does not allow; name the node explicitly instead' in text


def test_none(pool, daemon):
    path = image(pool, 'base.qcow2')
    assert '--stored-names does not allow' in refusal(daemon, path, '--stored-names', 'none')
    served = start(daemon, image(pool, None), '--stored-names', 'none')
    served.quit()
    # What the operator names is the operator's choice.
    path = image(pool, '../b/base.qcow2')
    base = f'backing.driver=qcow2,backing.file.driver=file,backing.file.filename={pool}/b/base.qcow2'
    daemon('--stored-names', 'none', '--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={path},{base}')


def test_data_files_follow_the_same_rule(pool, daemon):
    path = image(pool, None, '-o', f'data_file={pool}/b/data')
    (pool / 'b' / 'data').write_bytes(bytes(1 << 20))
    assert '--stored-names does not allow' in refusal(daemon, path, '--stored-names', pool / 'a')
    start(daemon, path, '--stored-names', pool / 'b')


def test_the_rule_holds_along_the_chain(pool, daemon):
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', pool / 'b' / 'base.qcow2', '-F', 'qcow2', pool / 'a' / 'mid')
    assert '--stored-names does not allow' in refusal(daemon, image(pool, 'mid'), '--stored-names', pool / 'a')


def test_a_folder_that_does_not_exist(pool, daemon):
    text = refusal(daemon, image(pool, 'base.qcow2'), '--stored-names', pool / 'nope')
    assert 'Could not resolve the folder' in text


@pytest.mark.parametrize('name', ('/dev/fd/0', '/proc/self/fd/0', '/dev/stdin/../fd/0', '../../proc/self/fd/0'))
def test_descriptors_of_the_daemon_are_no_files(name, pool, daemon):
    """Nor is anything else in /proc."""
    name = os.path.relpath('/proc/self/fd/0', pool / 'a') if name.startswith('..') else name
    refusal(daemon, image(pool, name))
    name = '/dev/fd/0'
    assert 'names that lead into /proc are not followed' in refusal(daemon, image(pool, name))


@pytest.mark.parametrize('name', ('file:base.qcow2', 'fat:rw:/etc', 'nbd://localhost', 'json:{}', 'x:base.qcow2'))
def test_protocols_are_not_followed(name, pool, daemon):
    path = image(pool, 'base.qcow2')
    images.patch(path, 8, struct.pack('>QI', 2048, len(name)))
    images.patch(path, 2048, name.encode())
    assert 'only paths of local files are followed; name the node explicitly instead' in refusal(daemon, path)


def test_a_name_ends_with_its_first_zero(pool, daemon):
    path = image(pool, 'base.qcow2')
    images.patch(path, 8, struct.pack('>QI', 2048, 20))
    images.patch(path, 2048, b'base.qcow2\0/../../../')
    start(daemon, path)
