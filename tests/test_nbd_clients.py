# SPDX-License-Identifier: Apache-2.0
"""Real clients: nbdinfo, nbdcopy, qemu-img, qemu-io, fio and libnbd work, and contents are equal byte for byte."""

import json

import pytest

from lib import images
from lib.tools import libnbd, need, output, run

SIZE = 8 << 20


@pytest.fixture
def served(daemon, tmp, rng):
    """A raw file, a qcow2 image with the same contents, and an empty writable image, each exported."""
    need('qemu-img')
    content = images.fill_raw(tmp / 'raw.img', rng, SIZE)
    run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', tmp / 'raw.img', tmp / 'image.qcow2')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / 'empty.qcow2', SIZE)
    one = daemon(
        '--blockdev',
        f'file,node-name=raw,filename={tmp}/raw.img,read-only=on',
        '--blockdev',
        f'qcow2,node-name=image,file.driver=file,file.filename={tmp}/image.qcow2,read-only=on',
        '--blockdev',
        f'qcow2,node-name=empty,file.driver=file,file.filename={tmp}/empty.qcow2,discard=unmap,file.discard=unmap',
        '--export',
        'nbd,id=r,node-name=raw,description=a raw file',
        '--export',
        'nbd,id=i,node-name=image,allocation-depth=on',
        '--export',
        'nbd,id=e,node-name=empty,writable=on',
        nbd=True,
    )
    one.content = content
    return one


def test_nbdinfo(served):
    need('nbdinfo')
    listing = json.loads(output('nbdinfo', '--list', '--json', served.uri()))
    exports = {export['export-name']: export for export in listing['exports']}
    assert sorted(exports) == ['empty', 'image', 'raw']
    assert exports['raw']['description'] == 'a raw file'
    assert exports['raw']['export-size'] == SIZE
    assert exports['raw']['is_read_only'] and not exports['empty']['is_read_only']
    assert all(
        export['can_multi_conn'] and export['can_cache'] and export['can_df'] for export in exports.values()
    )
    assert (
        exports['empty']['can_fua']
        and exports['empty']['can_trim']
        and exports['empty']['can_zero']
        and exports['empty']['can_fast_zero']
    )
    assert 'base:allocation' in exports['raw']['contexts']
    assert 'qemu:allocation-depth' in exports['image']['contexts']
    assert exports['raw']['block_size_maximum'] == 32 << 20
    assert json.loads(output('nbdinfo', '--json', served.uri('image')))['protocol'] == 'newstyle-fixed'


@pytest.mark.sanitize
def test_nbdcopy_both_ways(served, tmp):
    need('nbdcopy')
    for name in ('raw', 'image'):
        run('nbdcopy', served.uri(name), tmp / f'{name}.copy')
        assert (tmp / f'{name}.copy').read_bytes() == served.content
    run('nbdcopy', '--flush', tmp / 'raw.img', served.uri('empty'))
    run('nbdcopy', '--connections=4', '--requests=64', served.uri('empty'), tmp / 'back.copy')
    assert (tmp / 'back.copy').read_bytes() == served.content
    served.stop()
    images.check(tmp / 'empty.qcow2')
    assert images.to_raw(tmp / 'empty.qcow2') == served.content


@pytest.mark.sanitize
def test_qemu_img(served, tmp):
    need('qemu-img')
    run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', served.uri('image'), tmp / 'converted.img')
    assert (tmp / 'converted.img').read_bytes() == served.content
    run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', served.uri('image'), served.uri('raw'))
    run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', served.uri('empty'), served.uri('raw'), ok=(1,))
    run('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', tmp / 'raw.img', served.uri('empty'))
    run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', served.uri('empty'), served.uri('raw'))
    info = json.loads(output('qemu-img', 'info', '--output=json', '-f', 'raw', served.uri('raw')))
    assert info['virtual-size'] == SIZE
    mapped = json.loads(output('qemu-img', 'map', '--output=json', '-f', 'raw', served.uri('image')))
    assert sum(piece['length'] for piece in mapped) == SIZE
    for piece in mapped:
        if piece['zero']:
            assert not any(served.content[piece['start'] : piece['start'] + piece['length']])
    local = json.loads(output('qemu-img', 'map', '--output=json', '-f', 'qcow2', tmp / 'image.qcow2', '-U'))

    def runs(pieces):
        result = []
        for piece in pieces:
            if result and result[-1][1] == piece['zero']:
                result[-1][0] += piece['length']
            else:
                result.append([piece['length'], piece['zero']])
        return result

    assert runs(mapped) == runs(local)


def test_qemu_io(served):
    need('qemu-io')
    script = [
        'write -P 0x55 1000 70000',
        'read -P 0x55 1000 70000',
        'read -P 0 0 1000',
        'write -z 4096 8192',
        'read -P 0 4096 8192',
        'discard 65536 65536',
        'write -f -P 7 512 1',
        'read -P 7 512 1',
        'flush',
        'aio_write -P 9 200000 5000',
        'aio_read -P 0x55 20000 100',
        'aio_flush',
        'read -P 9 200000 5000',
    ]
    text = output('qemu-io', '-f', 'raw', *[a for c in script for a in ('-c', c)], served.uri('empty'))
    assert 'failed' not in text.lower() and 'verification' not in text.lower(), text


@pytest.mark.parametrize('export', ['empty', 'raw-writable'])
def test_fio_verify(export, served, tmp):
    """fio writes and verifies with checksums, many requests in flight."""
    need('fio')
    if export == 'raw-writable':
        (tmp / 'w.img').write_bytes(bytes(SIZE))
        served.blockdev_add(driver='file', node_name='raw-writable', filename=str(tmp / 'w.img'))
        served.export('raw-writable', writable=True)
    run(
        'fio',
        '--name=verify',
        '--ioengine=nbd',
        f'--uri={served.uri(export)}',
        '--rw=randwrite',
        '--bsrange=512-64k',
        '--blockalign=512',
        f'--size={SIZE}',
        '--iodepth=32',
        '--verify=crc32c',
        '--verify_fatal=1',
        '--randseed=7',
        '--io_size=16m',
        '--minimal',
        cwd=tmp,
    )


@pytest.mark.sanitize
def test_libnbd_features(served):
    """Structured replies, metadata contexts, alignment and flags as a library sees them."""
    nbd = libnbd()
    handle = nbd.NBD()
    handle.add_meta_context('base:allocation')
    handle.add_meta_context('qemu:allocation-depth')
    handle.connect_uri(served.uri('image'))
    assert handle.get_structured_replies_negotiated()
    assert handle.can_meta_context('qemu:allocation-depth')
    extents = {}

    def note(context, offset, entries, _error):
        extents.setdefault(context, []).extend(entries)
        return 0

    handle.block_status(SIZE, 0, note)
    for context in ('base:allocation', 'qemu:allocation-depth'):
        assert sum(extents[context][0::2]) <= SIZE and extents[context]
    pieces = []
    handle.pread_structured(
        1 << 20, 0, lambda data, offset, status, _error: pieces.append((offset, len(data), status)) or 0
    )
    assert sum(length for _, length, _ in pieces) == 1 << 20
    handle.shutdown()


@pytest.mark.sanitize
def test_many_requests_in_flight_on_many_connections(served, rng):
    nbd = libnbd()
    handles = []
    for _ in range(8):
        handle = served.connect('image')
        handles.append(handle)
    for _ in range(20):
        flying = []
        for handle in handles:
            for _ in range(16):
                length = rng.randrange(1, 30000)
                offset = rng.randrange(SIZE - length)
                buffer = nbd.Buffer(length)
                flying.append((handle, handle.aio_pread(buffer, offset), buffer, offset, length))
        for handle, cookie, buffer, offset, length in flying:
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
            assert buffer.to_bytearray() == served.content[offset : offset + length]


def test_clients_over_tcp(daemon, tmp):
    nbd = libnbd()
    daemon_with_tcp = daemon('--blockdev', 'null-co,node-name=n,size=65536,read-zeroes=on')
    import socket

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    daemon_with_tcp.cmd(
        'nbd-server-start', addr={'type': 'inet', 'data': {'host': '127.0.0.1', 'port': str(port)}}
    )
    daemon_with_tcp.export('n')
    handle = nbd.NBD()
    handle.connect_uri(f'nbd://127.0.0.1:{port}/n')
    assert handle.pread(10, 100) == bytes(10)
    handle.shutdown()


def test_a_second_connection_sees_the_first_ones_flush(served):
    """What multi-conn promises."""
    one, two = served.connect('empty'), served.connect('empty')
    for i in range(50):
        one.pwrite(bytes([i]) * 3000, i * 3000)
        one.flush()
        assert two.pread(3000, i * 3000) == bytes([i]) * 3000
