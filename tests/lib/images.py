# SPDX-License-Identifier: Apache-2.0
"""The matrix of qcow2 images that qemu-img makes, and their contents."""

import json
import pathlib
import random
import subprocess
from dataclasses import dataclass, field

import pytest

from lib.tools import output, run

MIB = 1 << 20


@dataclass
class Image:
    """A kind of image: options for `qemu-img create`, and what is special about it."""

    name: str
    options: dict = field(default_factory=dict)
    size: int = 2 * MIB
    backing: str = ''  # '', 'raw', 'qcow2' or 'chain'
    backing_size: int = 0
    compressed: bool = False
    data_file: bool = False


def opts(**options):
    return {key.replace('_', '-') if key not in UNDERSCORED else key: value for key, value in options.items()}


UNDERSCORED = {
    'cluster_size',
    'refcount_bits',
    'lazy_refcounts',
    'compression_type',
    'extended_l2',
    'data_file',
    'data_file_raw',
}


def matrix():
    """All kinds of images."""
    images = []
    for cluster in (512, 1024, 2048, 4096, 16384, 65536, 262144, MIB, 2 * MIB):
        size = 2 * MIB if cluster < MIB else 8 * MIB
        images.append(Image(f'v3-{cluster}', opts(cluster_size=cluster), size))
        images.append(Image(f'v2-{cluster}', opts(compat='0.10', cluster_size=cluster), size))
    for bits in (1, 2, 4, 8, 16, 32, 64):
        images.append(Image(f'refcount-{bits}', opts(refcount_bits=bits, cluster_size=4096)))
    for bits in (1, 64):
        images.append(Image(f'refcount-{bits}-tiny', opts(refcount_bits=bits, cluster_size=512)))
    images.append(Image('lazy', opts(lazy_refcounts='on')))
    for mode in ('off', 'metadata', 'falloc', 'full'):
        images.append(Image(f'prealloc-{mode}', opts(preallocation=mode)))
    for cluster in (16384, 65536, MIB):
        images.append(Image(f'extended-{cluster}', opts(extended_l2='on', cluster_size=cluster), 4 * MIB))
    images.append(Image('extended-backing', opts(extended_l2='on'), backing='raw'))
    images.append(Image('extended-prealloc', opts(extended_l2='on', preallocation='metadata')))
    for kind in ('zlib', 'zstd'):
        for cluster in (4096, 65536):
            images.append(
                Image(
                    f'compressed-{kind}-{cluster}',
                    opts(compression_type=kind, cluster_size=cluster),
                    compressed=True,
                )
            )
    images.append(Image('compressed-v2', opts(compat='0.10'), compressed=True))
    images.append(Image('compressed-512', opts(cluster_size=512), compressed=True))
    images.append(Image('compressed-2M', opts(cluster_size=2 * MIB), 8 * MIB, compressed=True))
    images.append(Image('compressed-extended', opts(extended_l2='on'), compressed=True))
    for backing in ('raw', 'qcow2', 'chain'):
        images.append(Image(f'backing-{backing}', backing=backing))
        images.append(Image(f'backing-{backing}-v2', opts(compat='0.10', cluster_size=4096), backing=backing))
    images.append(Image('backing-short', backing='raw', backing_size=MIB + 512))
    images.append(Image('backing-long', backing='qcow2', backing_size=4 * MIB))
    images.append(Image('backing-compressed', backing='qcow2', compressed=True))
    images.append(Image('data-file', data_file=True))
    images.append(Image('data-file-raw', opts(data_file_raw='on'), data_file=True))
    images.append(Image('data-file-extended', opts(extended_l2='on'), data_file=True))
    images.append(Image('odd-size', opts(cluster_size=65536), size=2 * MIB + 3 * 512))
    return images


def extents(rng, size, count=24):
    """Random pieces of data, some zero, of random lengths."""
    for _ in range(count):
        length = min(size, 512 * rng.choice((1, 3, 8, 37, 128, 300)))
        offset = 512 * rng.randrange((size - length) // 512 + 1)
        yield offset, length, rng.choice((0, 0x11, 0x22, 0x5A, 0xFF, None))


def fill_raw(path, rng, size):
    """A raw file with random data and holes; returns its contents."""
    content = bytearray(size)
    for offset, length, value in extents(rng, size):
        content[offset : offset + length] = (
            rng.randbytes(length) if value is None else bytes([value]) * length
        )
    with open(path, 'wb') as file:
        file.truncate(size)
        for start in range(0, size, 4096):
            piece = content[start : start + 4096]
            if any(piece):
                file.seek(start)
                file.write(piece)
    return bytes(content)


def qemu_io(path, commands, image_format='qcow2'):
    arguments = [argument for command in commands for argument in ('-c', command)]
    run('qemu-io', '-f', image_format, *arguments, path, cwd=pathlib.Path(path).parent)


def write_some(path, rng, size):
    """Writes, zeroes and discards pieces of an image through qemu-io."""
    commands = []
    for offset, length, value in extents(rng, size, 12):
        if value == 0:
            commands.append(
                rng.choice(
                    (
                        f'write -z {offset} {length}',
                        f'write -z -u {offset} {length}',
                        f'discard {offset} {length}',
                    )
                )
            )
        else:
            commands.append(f'write -P {value or 0x77} {offset} {length}')
    qemu_io(path, commands)


def make(image, directory, rng, content=True):
    """Makes the image in a directory; returns its path. The contents are random unless content is False."""
    directory = pathlib.Path(directory)
    path = directory / f'{image.name}.qcow2'
    options = dict(image.options)
    if image.data_file:
        options['data_file'] = f'{image.name}.data'
    arguments = ['-f', 'qcow2']
    if image.backing:
        base_size = image.backing_size or image.size
        base = directory / f'{image.name}.base'
        fill_raw(base, rng, base_size)
        base_format = 'raw'
        if image.backing in ('qcow2', 'chain'):
            run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', base, f'{base}.qcow2')
            base, base_format = pathlib.Path(f'{base}.qcow2'), 'qcow2'
        if image.backing == 'chain':
            for i in range(2):
                middle = directory / f'{image.name}.middle{i}'
                run(
                    'qemu-img',
                    'create',
                    '-q',
                    '-f',
                    'qcow2',
                    '-b',
                    base.name,
                    '-F',
                    base_format,
                    middle,
                    cwd=directory,
                )
                write_some(middle, rng, base_size)
                base, base_format = middle, 'qcow2'
        arguments += ['-b', base.name, '-F', base_format]
    if options:
        arguments += ['-o', ','.join(f'{key}={value}' for key, value in options.items())]
    if image.compressed:
        source = directory / f'{image.name}.source'
        fill_raw(source, rng, image.size)
        compress_options = ','.join(f'{key}={value}' for key, value in options.items())
        run(
            'qemu-img',
            'convert',
            '-c',
            '-f',
            'raw',
            '-O',
            'qcow2',
            *(['-o', compress_options] if options else []),
            *(['-B', base.name, '-F', base_format] if image.backing else []),
            source,
            path,
            cwd=directory,
        )
    else:
        run('qemu-img', 'create', '-q', *arguments, path, image.size, cwd=directory)
    if content:
        write_some(path, rng, image.size)
    return path


def to_raw(path):
    """The contents as the reference reads them."""
    raw = pathlib.Path(f'{path}.raw')
    run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', path, raw, cwd=pathlib.Path(path).parent)
    data = raw.read_bytes()
    raw.unlink()
    return data


def check(path, leaks_allowed=False):
    """qemu-img check: clean, or at worst leaked clusters."""
    done = subprocess.run(
        ['qemu-img', 'check', '-f', 'qcow2', str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=pathlib.Path(path).parent,
    )
    assert done.returncode == 0 or (
        leaks_allowed and done.returncode == 3
    ), f'{path}: {done.returncode}\n{done.stdout.decode()[-3000:]}'


def info(path, *options):
    """What qemu-img says of the image."""
    return json.loads(output('qemu-img', 'info', '--output=json', *options, path))


def patch(path, offset, data):
    """Writes into the file, whatever is there."""
    with open(path, 'r+b') as file:
        file.seek(offset)
        file.write(data)


def create_encrypted(*arguments):
    """qemu-img create for encryption with little time for the password, where it cannot always measure the processor."""
    for _ in range(10):
        command = ['qemu-img', 'create', '-q', *(str(argument) for argument in arguments)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode == 0:
            return
        assert 'CPU usage' in made.stderr, made.stderr
    pytest.skip('the reference cannot measure the processor here')


def seeded(rng):
    return random.Random(rng.randrange(1 << 31))
