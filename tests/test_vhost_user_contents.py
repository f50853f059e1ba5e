# SPDX-License-Identifier: Apache-2.0
"""What a guest writes is what others find in the image, byte for byte; what is durable survives a kill."""

import pytest

from lib import images
from lib.images import Image, opts
from lib.tools import need, run
from lib.vhostload import Load
from lib.vhostuser import WCE_OFFSET, Guest, export

MIB = 1 << 20
IMAGES = {
    'v3': Image('v3', opts()),
    'small-clusters': Image('small', opts(cluster_size=512)),
    'extended': Image('extended', opts(extended_l2='on', cluster_size=16384)),
    'backing': Image('backing', opts(cluster_size=4096), backing='qcow2'),
}


@pytest.fixture
def serve(daemon, tmp, guests):
    """Starts a daemon with the image; the guest goes on with the next."""

    def factory(path, driver, **options):
        served = daemon(
            '--object',
            'iothread,id=t',
            '--blockdev',
            f'{driver},node-name=n,discard=unmap,'
            + (f'file.driver=file,file.filename={path}' if driver == 'qcow2' else f'filename={path}'),
            *export(tmp / 's', writable='on', **options),
        )
        return served, guests(tmp / 's', queues=int(options.get('num_queues', 1)))

    return factory


@pytest.mark.sanitize
@pytest.mark.parametrize('options', [{}, {'num_queues': 4}, {'num_queues': 4, 'iothread': 't'}], ids=str)
def test_raw(options, serve, tmp, rng):
    content = images.fill_raw(tmp / 'image', rng, 2 * MIB)
    served, guest = serve(tmp / 'image', 'file', **options)
    load = Load(guest, content, rng)
    load.run(600)
    load.compare_all()
    guest.disconnect()
    served.quit()
    load.compare((tmp / 'image').read_bytes())


@pytest.mark.sanitize
@pytest.mark.parametrize('options', [{}, {'num_queues': 4, 'iothread': 't'}], ids=str)
@pytest.mark.parametrize('name', IMAGES)
def test_qcow2(name, options, serve, tmp, rng):
    need('qemu-img', 'qemu-io')
    path = images.make(IMAGES[name], tmp, rng)
    content = images.to_raw(path)
    served, guest = serve(path, 'qcow2', **options)
    load = Load(guest, content, rng)
    load.compare_all()
    load.run(400)
    load.compare_all()
    guest.disconnect()
    served.quit()
    images.check(path)
    load.compare(images.to_raw(path))


@pytest.mark.sanitize
def test_null(daemon, tmp, rng):
    daemon('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on', *export(tmp / 's', writable='on'))
    with Guest(tmp / 's') as guest:
        for i in range(20):
            guest.write(i, rng.randbytes(4096))
            assert guest.read(i, 4096) == bytes(4096)


@pytest.mark.parametrize('how', ['flush', 'writethrough option', 'write cache off'])
def test_what_is_durable_survives_a_kill(how, serve, tmp, rng):
    """qcow2 keeps tables in memory until they have to be on disk, so a lost flush would show."""
    need('qemu-img')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / 'image', 2 * MIB)
    options = {'writethrough': 'on'} if how == 'writethrough option' else {}
    served, guest = serve(tmp / 'image', 'qcow2', **options)
    if how != 'writethrough option':
        guest.wire.set_config(WCE_OFFSET, bytes([how == 'flush']))
    load = Load(guest, bytes(2 * MIB), rng, weights={1: 1})
    load.run(100)
    load.finish()
    if how == 'flush':
        guest.flush()
    served.kill()
    load.compare(images.to_raw(tmp / 'image'))
