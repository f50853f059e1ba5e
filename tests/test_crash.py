# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random points under write load: flushed data is intact and a check finds leaked clusters at worst."""

import subprocess

import pytest

from lib import images
from lib.crash import BLOCK, Ledger, Writer, wait_unlocked
from lib.images import Image, opts
from lib.tools import need, wait_until

SIZE = 8 << 20
KILLS = 6
KINDS = [
    Image('v3', opts(), SIZE),
    Image('v3-512', opts(cluster_size=512), SIZE),
    Image('v3-4096', opts(cluster_size=4096), SIZE),
    Image('v2', opts(compat='0.10'), SIZE),
    Image('refcount-1', opts(refcount_bits=1, cluster_size=1024), SIZE),
    Image('refcount-64', opts(refcount_bits=64, cluster_size=512), SIZE),
    Image('extended', opts(extended_l2='on'), SIZE),
    Image('prealloc', opts(preallocation='metadata'), SIZE),
    Image('data-file', opts(), SIZE, data_file=True),
    Image('backing', opts(), SIZE, backing='qcow2'),
]


def crash_once(served, ledger, rng):
    """Load from three connections until a random number of requests are done, then SIGKILL."""
    share = len(ledger.blocks) // 3
    writers = []
    for i in range(3):
        handle = served.connect('q')
        writers.append(Writer(handle, ledger, i * share, (i + 1) * share, rng, discard=rng.random() < 0.5))
    goal = rng.choice((5, 30, 100, 300)) + rng.randrange(100)
    while sum(writer.done for writer in writers) < goal:
        for writer in writers:
            writer.turn(depth=6)
    served.kill()


def unlocked(path):
    """Requests that were in an io_uring when the process died keep its files, and so their locks, until the kernel is
    done with them, a moment after the process has gone."""
    return (
        subprocess.run(
            ['qemu-img', 'info', path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=path.parent,
            check=False,
        ).returncode
        == 0
    )


@pytest.mark.parametrize('image', KINDS, ids=[image.name for image in KINDS])
def test_flushed_data_survives_sigkill(image, daemon, tmp, rng):
    need('qemu-img')
    path = images.make(image, tmp, rng, content=False)
    if image.backing:  # the ledger starts from zeroes: cover the backing file
        images.qemu_io(path, [f'write -z 0 {SIZE}'])
    ledger = Ledger(SIZE)
    assert SIZE % BLOCK == 0
    for kill in range(KILLS):
        served = daemon(
            '--blockdev',
            f'driver=qcow2,node-name=q,discard=unmap,file.driver=file,file.filename={path}',
            '--export',
            'nbd,id=e,node-name=q,writable=on',
            nbd=True,
        )
        crash_once(served, ledger, rng)
        wait_unlocked(tmp)
        print(f'{image.name}: kill {kill + 1}')
        wait_until(lambda: unlocked(path), 'the kernel to give up the locks')
        images.check(path, leaks_allowed=True)
        ledger.verify(images.to_raw(path))


def test_that_makes_fifty_kills():
    assert len(KINDS) * KILLS >= 50
