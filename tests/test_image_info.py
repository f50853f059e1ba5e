# SPDX-License-Identifier: Apache-2.0
"""What query-named-block-nodes says of an image is what qemu-img info says of it, over the matrix of images, with
snapshots, and down the chain of backing files."""

import json

import pytest

from lib import images
from lib.images import Image, opts
from lib.tools import need, run

MATRIX = [
    *images.matrix(),
    *(
        Image(f'cluster-{cluster}-refcount-{bits}', opts(cluster_size=cluster, refcount_bits=bits))
        for cluster in (512, 65536)
        for bits in (1, 16, 64)
    ),
    Image('lazy-zstd', opts(lazy_refcounts='on', compression_type='zstd')),
    Image('extended-zstd', opts(extended_l2='on', compression_type='zstd'), backing='chain'),
]


def shown(daemon, path):
    """The image of the node and of its file, as the daemon describes them."""
    served = daemon()
    served.blockdev_add(
        driver='qcow2',
        node_name='q',
        read_only=True,
        file={'driver': 'file', 'node-name': 'f', 'filename': str(path), 'read-only': True},
    )
    nodes = {node['node-name']: node['image'] for node in served.cmd('query-named-block-nodes')}
    served.stop()
    return nodes['q'], nodes['f']


def described(path):
    """The same by qemu-img: a list, which goes down the chain, becomes nested."""
    done = run(
        'qemu-img', 'info', '--output=json', '--backing-chain', '-f', 'qcow2', path, cwd=path.parent
    )
    chain = json.loads(done.stdout)
    for upper, lower in zip(chain, chain[1:]):
        upper['backing-image'] = lower
    return chain[0]


def without_newer(info):
    """What only newer versions of qemu-img say: the nodes below (from 8.0 on)."""
    info = {key: value for key, value in info.items() if key not in ('children', 'limits')}
    if 'backing-image' in info:
        info['backing-image'] = without_newer(info['backing-image'])
    if info['format'] == 'file':
        info.pop('format-specific', None)
    return info


def compare(daemon, path):
    ours, file = shown(daemon, path)
    theirs = described(path)
    assert without_newer(ours) == without_newer(theirs)
    done = run('qemu-img', 'info', '--output=json', '--image-opts', f'driver=file,filename={path}')
    assert without_newer(file) == without_newer(json.loads(done.stdout))


@pytest.mark.parametrize('image', MATRIX, ids=[image.name for image in MATRIX])
def test_same_as_qemu_img(image, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    compare(daemon, images.make(image, tmp, rng))


@pytest.mark.parametrize('compat', ['0.10', '1.1'])
def test_with_snapshots(compat, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    path = images.make(Image('s', opts(compat=compat, cluster_size=4096), backing='qcow2'), tmp, rng)
    for name in ('one', 'two words', '\u00e4\u20ac'):
        run('qemu-img', 'snapshot', '-c', name, path)
    compare(daemon, path)


@pytest.mark.parametrize('bit', [0, 1], ids=['dirty', 'corrupt'])
def test_marked(bit, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    path = images.make(Image('m', opts(lazy_refcounts='on')), tmp, rng)
    images.patch(path, 79, bytes([1 << bit]))
    compare(daemon, path)
