# SPDX-License-Identifier: Apache-2.0
"""Encrypted qcow2 images: made and read by the reference, opened by Granary."""

import json

from lib import images
from lib.qmp import dashed
from lib.tools import run

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
SECRET = ('--object', 'secret,id=s,data=x')
OTHER = ('--object', 'secret,id=t,data=other')


def make_with_reference(path, options, form='luks', backing=None):
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


def read_with_reference(path, form='luks'):
    plain = path.with_suffix('.plain')
    run('qemu-img', 'convert', *SECRET, '-O', 'raw', image_opts(path, form), plain)
    return plain.read_bytes()


def write_with_reference(path, shadow, form='luks'):
    run('qemu-io', *SECRET, '-c', 'write -P 0x5a 3k 200k', image_opts(path, form))
    shadow[3 * KIB : 203 * KIB] = b'\x5a' * (200 * KIB)


def check(path):
    run('qemu-img', 'check', *SECRET, image_opts(path))


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
    return served.connect('q')


def amend(served, force=False, **options):
    """Changes the keys."""
    given = {'driver': 'qcow2', 'encrypt': {'format': 'luks', **dashed(options)}}
    served.qmp.run_job('amend', 'x-blockdev-amend', node_name='q', options=given, force=force)


def stop_and_compare(served, path, shadow):
    """The reference finds the image sound, and the contents in it."""
    served.stop()
    check(path)
    assert read_with_reference(path) == shadow
