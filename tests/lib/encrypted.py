# SPDX-License-Identifier: Apache-2.0
"""Encrypted qcow2 images: made and read by the reference, opened by Granary."""

import json

from lib import images
from lib.tools import libnbd, run

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
SECRET = ('--object', 'secret,id=s,data=x')
OTHER = ('--object', 'secret,id=t,data=other')


def make(path, options, form='luks', backing=None):
    given = {'encrypt.format': form, 'encrypt.key-secret': 's', **options}
    if form == 'luks':
        given['encrypt.iter-time'] = 20
    text = ','.join(f'{k}={v}' for k, v in given.items())
    base = ('-b', backing, '-F', 'raw') if backing else ()
    images.create_encrypted('-f', 'qcow2', *SECRET, '-o', text, *base, path, SIZE)


def image_opts(path, form='luks'):
    encrypt = {'format': form, 'key-secret': 's'}
    return 'json:' + json.dumps(
        {'driver': 'qcow2', 'encrypt': encrypt, 'file': {'driver': 'file', 'filename': str(path)}}
    )


def read_with_reference(path, tmp, form='luks'):
    run('qemu-img', 'convert', *SECRET, '-O', 'raw', image_opts(path, form), tmp / 'plain.raw')
    return (tmp / 'plain.raw').read_bytes()


def open_image(served, path, form='luks', secret='s', **more):
    served.blockdev_add(
        driver='qcow2',
        node_name='q',
        file={'driver': 'file', 'filename': str(path)},
        encrypt={'format': form, **({'key-secret': secret} if secret else {})},
        **more,
    )


def connect(served, **options):
    served.export('q', **options)
    handle = libnbd().NBD()
    handle.connect_uri(served.uri('q'))
    return handle
