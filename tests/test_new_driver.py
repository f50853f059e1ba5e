# SPDX-License-Identifier: Apache-2.0
"""A driver is a folder and a word: one driver's folder is copied under a new name, its word added to a meson.build, and
the copy opens over QMP. Nothing else in the tree is touched."""

import os
import re
import shutil

import pytest

from lib.tools import TOP, libnbd, need, run

ORIGINAL, COPY = 'raw', 'rawcopy'


@pytest.fixture
def tree(tmp):
    """A copy of the tree with one more driver."""
    need('meson', 'ninja')
    top = tmp / 'tree'
    shutil.copytree(TOP, top, ignore=shutil.ignore_patterns('build*', '.git', '__pycache__', 'corpus'))
    (top / 'tests' / 'corpus').mkdir(exist_ok=True)
    source, target = top / 'src' / 'drivers' / ORIGINAL, top / 'src' / 'drivers' / COPY
    shutil.copytree(source, target)
    for path in target.iterdir():
        text = rename(path.read_text())
        new = path.with_name(path.name.replace(ORIGINAL, COPY))
        path.unlink()
        new.write_text(text)
    words = top / 'src' / 'drivers' / 'meson.build'
    text = words.read_text()
    changed = re.sub(rf"'{ORIGINAL}'(?=[\],])", f"'{ORIGINAL}', '{COPY}'", text, count=1)
    assert changed != text
    words.write_text(changed)
    return top


def rename(text):
    """The name wherever it is a word of its own or part of an identifier."""
    text = re.sub(rf'(?<![A-Za-z]){ORIGINAL}(?![A-Za-z])', COPY, text)
    text = re.sub(rf'(?<![A-Z]){ORIGINAL.upper()}(?![A-Z])', COPY.upper(), text)
    return re.sub(rf'{ORIGINAL.capitalize()}(?![a-z])', COPY.capitalize(), text)


def test_copied_driver_opens(tree, daemon, tmp, rng):
    libnbd()
    environment = dict(os.environ, PATH='/usr/bin:/bin:' + os.environ['PATH'])
    run('meson', 'setup', '-Dtests=false', '-Doptimization=0', tree / 'build', cwd=tree, env=environment)
    run('ninja', '-C', tree / 'build', env=environment, timeout=1200)
    content = rng.randbytes(1 << 20)
    (tmp / 'disk.img').write_bytes(content)
    served = daemon(binary=tree / 'build' / 'compat' / 'qemu-storage-daemon', nbd=True)
    served.blockdev_add(
        driver=COPY,
        node_name='copy',
        offset=65536,
        file={'driver': 'file', 'filename': str(tmp / 'disk.img')},
    )
    served.blockdev_add(driver=ORIGINAL, node_name='original', read_only=True, file='copy')
    assert {node['node-name']: node['drv'] for node in served.cmd('query-named-block-nodes')}['copy'] == COPY
    served.export('copy')
    handle = served.connect('copy')
    assert handle.pread(4096, 0) == content[65536 : 65536 + 4096]
    handle.shutdown()
    values = next(
        entity
        for entity in served.cmd('query-qmp-schema')
        if entity['meta-type'] == 'enum' and 'null-co' in entity['values']
    )['values']
    assert COPY in values
