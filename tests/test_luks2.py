# SPDX-License-Identifier: Apache-2.0
"""
LUKS volumes of version 2, made by cryptsetup. What is behind the header is compared with what two others make of it:
QEMU, in a volume of version 1 with the same key, and the cryptography library.
"""

import json
import subprocess

import pytest

from lib import images
from lib.daemon import monitor_at
from lib.luks import (
    MIB,
    OTHER,
    PASSWORD,
    SECRET,
    Metadata2,
    close,
    connect,
    cryptsetup,
    cryptsetup_opens,
    decrypt,
    edit,
    format2,
    open_volume,
    volume_key,
)
from lib.qmp import Qmp, QmpError
from lib.tools import libnbd, need, output, run, wait_until
from lib.workload import read_all, use

pytestmark = pytest.mark.better  # the reference knows version 1 only

SIZE = 2 * MIB
HEAD = 16 * MIB


def read_volume(served, path, **more):
    open_volume(served, path, **more)
    handle = connect(served)
    data = read_all(handle)
    handle.shutdown()
    return data


def twin(path, tmp, cipher, key):
    """A volume of version 1 with the same key and the same encrypted data, for QEMU."""
    need('qemu-img')
    (tmp / 'twin.key').write_bytes(key)
    with open(tmp / 'twin', 'wb') as file:
        file.truncate(8 * MIB)
    made = ['luksFormat', '--type', 'luks1', '--iter-time', '10', '--cipher', cipher, '--key-size', len(key) * 8]
    cryptsetup(*made, '--volume-key-file', tmp / 'twin.key', tmp / 'twin')
    start = int(output('cryptsetup', 'luksDump', tmp / 'twin').split('Payload offset:')[1].split()[0]) * 512
    with open(tmp / 'twin', 'r+b') as file:
        file.truncate(start)
        file.seek(start)
        file.write(path.read_bytes()[HEAD:])
    file = {'driver': 'file', 'filename': str(tmp / 'twin')}
    return start, 'json:' + json.dumps({'driver': 'luks', 'key-secret': 's', 'file': file})


@pytest.mark.parametrize(
    'cipher,bits,hashed,pbkdf',
    [
        ('aes-xts-plain64', 512, 'sha256', 'argon2id'),
        ('aes-xts-plain64', 256, 'sha512', 'argon2i'),
        ('aes-xts-plain', 256, 'sha1', 'pbkdf2'),
        ('aes-cbc-essiv:sha256', 256, 'sha256', 'argon2id'),
        ('aes-cbc-plain64', 128, 'ripemd160', 'pbkdf2'),
        ('aes-cbc-plain64', 256, 'sha384', 'pbkdf2'),
        ('aes-xts-essiv:sha256', 512, 'sha224', 'argon2i'),
    ],
)
def test_interchange(cipher, bits, hashed, pbkdf, daemon, tmp, rng):
    """QEMU reads what was written, and what QEMU writes is read."""
    libnbd()
    path = tmp / 'a.luks'
    names = ('--cipher', cipher, '--key-size', bits, '--hash', hashed, '--pbkdf', pbkdf)
    format2(path, *names, '--sector-size', 512, size=SIZE + 512)
    served = daemon(*SECRET, nbd=True)
    open_volume(served, path)
    handle = connect(served)
    assert handle.get_size() == SIZE + 512
    shadow = use(handle, rng)
    close(served)
    cryptsetup_opens(path)
    start, image = twin(path, tmp, cipher, volume_key(path, tmp))
    run('qemu-img', 'convert', *SECRET, '-O', 'raw', image, tmp / 'plain.raw')
    assert (tmp / 'plain.raw').read_bytes() == shadow
    data = rng.randbytes(SIZE + 512)
    (tmp / 'plain.raw').write_bytes(data)
    run('qemu-img', 'convert', *SECRET, '-n', '-f', 'raw', '--target-image-opts', tmp / 'plain.raw',
        f'driver=luks,key-secret=s,file.driver=file,file.filename={tmp}/twin')  # fmt: skip
    images.patch(path, HEAD, (tmp / 'twin').read_bytes()[start:])
    assert read_volume(served, path) == data


@pytest.mark.parametrize('sector', [512, 1024, 2048, 4096])
@pytest.mark.parametrize('mode,cipher,bits', [('xts', 'aes-xts-plain64', 512), ('cbc', 'aes-cbc-plain64', 256)])
def test_sector_sizes(mode, cipher, bits, sector, daemon, tmp, rng):
    """The vectors count in 512 bytes whatever a sector has."""
    libnbd()
    path = tmp / 'a.luks'
    format2(path, '--cipher', cipher, '--key-size', bits, '--sector-size', sector)
    with open(path, 'ab') as file:
        file.truncate(HEAD + SIZE + sector - 512)  # part of a sector is none
    key = volume_key(path, tmp)
    served = daemon(*SECRET, nbd=True)
    open_volume(served, path)
    handle = connect(served)
    assert handle.get_size() == SIZE
    shadow = use(handle, rng, sector=sector)
    close(served)
    assert decrypt(path.read_bytes()[HEAD : HEAD + SIZE], key, mode, sector) == shadow
    data = rng.randbytes(SIZE)
    images.patch(path, HEAD, decrypt(data, key, mode, sector, encrypt=True))
    assert read_volume(served, path) == data


def test_fixed_size(daemon, tmp, rng):
    path = tmp / 'a.luks'
    format2(path, '--sector-size', 4096)
    key = volume_key(path, tmp)
    edit(path, lambda m: m['segments']['0'].update(size=str(MIB)))
    served = daemon(*SECRET, nbd=True)
    open_volume(served, path)
    handle = connect(served)
    data = rng.randbytes(MIB)
    handle.pwrite(data[:69632], 0)
    handle.pwrite(data[69632:], 69632)
    assert handle.get_size() == MIB
    handle.shutdown()
    stored = path.read_bytes()[HEAD : HEAD + MIB]
    assert decrypt(stored, key, 'xts', 4096) == data
    close(served)
    open_volume(served, path)
    with pytest.raises(QmpError, match='says how long it is'):
        served.cmd('block_resize', node_name='l', size=SIZE)
    served.cmd('blockdev-del', node_name='l')
    edit(path, lambda m: m['segments']['0'].update(size=str(SIZE + 4096)))
    with pytest.raises(QmpError, match='for which its file is too short'):
        open_volume(served, path)


@pytest.mark.parametrize(
    'options',
    [
        ('--offset', 65536),
        ('--luks2-metadata-size', '64k'),
        ('--luks2-metadata-size', '4m', '--luks2-keyslots-size', '8m'),
        ('--luks2-keyslots-size', '512k', '--align-payload', 2048),
        ('--label', 'a label', '--subsystem', 'x'),
        ('--keyslot-cipher', 'aes-cbc-plain64', '--keyslot-key-size', 128),
        ('--key-slot', 17),
    ],
    ids=str,
)
def test_options_of_cryptsetup(options, daemon, tmp, rng):
    path = tmp / 'a.luks'
    with open(path, 'wb') as file:
        file.truncate(40 * MIB)
    format2(path, '--sector-size', 512, *options)
    offset = int(Metadata2(path).json['segments']['0']['offset'])
    served = daemon(*SECRET, nbd=True)
    open_volume(served, path)
    handle = connect(served)
    assert handle.get_size() == 40 * MIB - offset
    data = rng.randbytes(8192)
    handle.pwrite(data, 4096)
    handle.shutdown()
    cryptsetup_opens(path)
    stored = path.read_bytes()[offset + 4096 :][:8192]
    assert decrypt(stored, volume_key(path, tmp), 'xts', 512, 8) == data


@pytest.mark.parametrize('offset', [(), ('--offset', 0), ('--offset', 2048)], ids=str)
def test_detached_header(offset, daemon, tmp, rng):
    header, data = tmp / 'h.luks', tmp / 'd.img'
    with open(data, 'wb') as file:
        file.truncate(SIZE)
    format2(data, '--header', header, *offset)
    start = 512 * offset[1] if offset else 0
    served = daemon(*SECRET, nbd=True)
    open_volume(served, data, header={'driver': 'file', 'filename': str(header), 'read-only': True})
    handle = connect(served)
    assert handle.get_size() == SIZE - start
    shadow = bytearray(read_all(handle))
    handle.pwrite(rng.randbytes(69632), 4096)
    shadow = read_all(handle)
    handle.shutdown()
    sector = Metadata2(header).json['segments']['0']['sector_size']
    assert decrypt(data.read_bytes()[start:], volume_key(header, tmp), 'xts', sector) == shadow
    close(served)
    if start == 0:
        with pytest.raises(QmpError, match='LUKS payload is overlapping with the header'):
            open_volume(served, header)


MONITORS = 4
ARGON2_KIB = 128 << 10


def start_opening(daemon, tmp):
    """A daemon with clients that have each asked it to open a volume whose password takes much memory to try."""
    path = tmp / 'a.luks'
    format2(path, '--pbkdf', 'argon2id', '--pbkdf-memory', ARGON2_KIB, '--pbkdf-parallel', 1)
    args = [word for i in range(MONITORS) for word in monitor_at(tmp / f'{i}.sock', f'c{i}')]
    served = daemon(*SECRET, *args, '--trace', f'enable=file_open,file={tmp}/trace')
    before = served.memory('VmHWM')
    clients = [Qmp.connect(tmp / f'{i}.sock') for i in range(MONITORS)]
    file = {'driver': 'file', 'filename': str(path), 'read-only': True}
    for i, client in enumerate(clients):
        node = {'driver': 'luks', 'node-name': f'l{i}', 'key-secret': 's', 'read-only': True, 'file': file}
        client.ident = client.send('blockdev-add', node)
    wait_until(lambda: (tmp / 'trace').read_text().count('file_open') == MONITORS, 'all to be opened')
    return served, clients, before


def test_memory_for_passwords_is_for_one_at_a_time(daemon, tmp):
    served, clients, before = start_opening(daemon, tmp)
    wait_until(lambda: served.memory('VmHWM') - before > (ARGON2_KIB << 10) // 2, 'the first try')
    served.cmd('query-block-exports')  # nobody else has to wait
    for client in clients:
        assert client.reply_to(client.ident)['return'] == {}
    assert (ARGON2_KIB << 10) // 2 < served.memory('VmHWM') - before < (ARGON2_KIB << 10) * 3 // 2
    assert len(served.cmd('query-named-block-nodes')) == 2 * MONITORS


def test_who_waits_to_try_a_password_gives_up_at_the_end(daemon, tmp):
    served, clients, _ = start_opening(daemon, tmp)
    served.cmd('quit')
    replies = [client.reply_to(client.ident) for client in clients]
    said = [reply['error']['desc'] for reply in replies if 'error' in reply]
    assert 'Keyslot 0 was not tried: Operation canceled' in said, replies
    served.wait()


def test_key_slots(daemon, tmp):
    """All are tried but those that cryptsetup would not try either, and those of other keys."""
    path = tmp / 'a.luks'
    format2(path)
    (tmp / 'new').write_text('other')
    cheap = ('--pbkdf', 'argon2id', '--pbkdf-memory', 64, '--pbkdf-force-iterations', 4)
    cryptsetup('luksAddKey', *cheap, '--key-slot', 31, path, tmp / 'new')
    (tmp / 'unbound').write_text('third')
    cryptsetup('luksAddKey', *cheap, '--unbound', '--key-size', 128, '--key-slot', 3, path, tmp / 'unbound')
    served = daemon(*SECRET, *OTHER, '--object', 'secret,id=u,data=third', '--object', 'secret,id=w,data=wrong')
    for secret, opens in ('s', True), ('t', True), ('u', False), ('w', False):
        if opens:
            open_volume(served, path, secret=secret)
            slots = served.cmd('query-named-block-nodes')[0]['image']['format-specific']['data']['slots']
            assert [i for i, slot in enumerate(slots) if slot['active']] == [0, 31]
            served.cmd('blockdev-del', node_name='l')
        else:
            with pytest.raises(QmpError, match='Invalid password, cannot unlock any keyslot$'):
                open_volume(served, path, secret=secret)
    run('cryptsetup', 'config', '--priority', 'ignore', '--key-slot', '31', path)
    run('cryptsetup', 'config', '--priority', 'prefer', '--key-slot', '0', path)
    with pytest.raises(QmpError, match='Invalid password'):
        open_volume(served, path, secret='t')
    open_volume(served, path)


def test_slots_that_cannot_be_used(daemon, tmp):
    """They do not keep the others from being used, and the message says why they were not tried."""
    path = tmp / 'a.luks'
    format2(path)
    (tmp / 'new').write_text('other')
    cryptsetup('luksAddKey', '--pbkdf', 'pbkdf2', '--pbkdf-force-iterations', 1000, path, tmp / 'new')
    served = daemon(*SECRET, *OTHER)
    for change, why in (
        (lambda slot: slot['kdf'].update(type='scrypt'), "Key derivation 'scrypt' is not supported"),
        (lambda slot: slot['kdf'].update(hash='whirlpool'), "Hash algorithm 'whirlpool' not supported"),
        (lambda slot: slot['kdf'].update(iterations=2**31 - 1), 'too long to try: more than'),
        (lambda slot: slot['kdf'].update(type='argon2i', time=4, memory=2**20 + 1, cpus=1), 'KiB of memory to try'),
        (lambda slot: slot['kdf'].update(type='argon2i', time=65, memory=2**20, cpus=1), '65 passes over 1048576 KiB'),
        (lambda slot: slot['kdf'].update(type='argon2i', time=4, memory=64, cpus=17), '17 processors to try'),
        (lambda slot: slot['kdf'].update(salt='?'), "'salt': Base64 data contains invalid characters"),
        (lambda slot: slot['af'].update(stripes=4001), "'stripes' is no number between 4000 and 4000"),
        (lambda slot: slot['area'].update(offset='32767'), 'does not fit its key'),
        (lambda slot: slot['area'].update(offset='18446744073709551615'), 'does not fit its key'),
        (lambda slot: slot['area'].update(offset='18446744073709551616'), "'offset' is no decimal number"),
        (lambda slot: slot['area'].update(offset=32768), "'offset' is no decimal number"),
        (lambda slot: slot['area'].update(size='255999'), 'does not fit its key'),
        (lambda slot: slot['area'].update(encryption='capi:xts(aes)-plain64'), 'Unexpected cipher mode'),
        (lambda slot: slot['area'].update(encryption='aegis128-random'), 'Unexpected cipher mode'),
        (lambda slot: slot['area'].update(encryption='camellia-xts-plain64'), "Algorithm 'camellia' with"),
        (lambda slot: slot['area'].update(type='datashift'), "type 'datashift' is not supported"),
        (lambda slot: slot.update(key_size=48), 'its key has another size'),
        (lambda slot: slot.update(key_size=65), "'key_size' is no number between 1 and 64"),
        (lambda slot: slot.update(type='reencrypt'), "type 'reencrypt' is not supported"),
        (lambda slot: slot.pop('kdf'), "'kdf' is missing or no object"),
    ):
        good = path.read_bytes()
        edit(path, lambda m: change(m['keyslots']['1']))
        with pytest.raises(QmpError, match='cannot unlock any keyslot; keyslot 1 was not tried: ') as refused:
            open_volume(served, path, secret='t')
        assert why in refused.value.desc
        open_volume(served, path)
        served.cmd('blockdev-del', node_name='l')
        edit(path, lambda m: m['digests']['0'].update(keyslots=['1']))
        alone = 'Invalid password' if 'another size' in why else 'Keyslot 1 cannot be used: '
        with pytest.raises(QmpError, match=alone):
            open_volume(served, path)
        path.write_bytes(good)


REFUSALS = {
    'LUKS2 volumes with 2 data segments are not supported': lambda m: m['segments'].update({'1': m['segments']['0']}),
    'LUKS2 volumes with 0 data segments are not supported': lambda m: m['segments'].clear(),
    'Volumes with integrity protection are not supported': lambda m: m['segments']['0'].update(
        integrity={'type': 'hmac(sha256)', 'journal_encryption': 'none', 'journal_integrity': 'none'}
    ),
    "type 'linear' is not supported": lambda m: m['segments']['0'].update(type='linear'),
    'Segments with flags are not supported': lambda m: m['segments']['0'].update(flags=['in-reencryption']),
    "'sector_size' is no number between 512 and 4096": lambda m: m['segments']['0'].update(sector_size=8192),
    'sector size 1536 is not valid': lambda m: m['segments']['0'].update(sector_size=1536),
    'offset 16777217 is not valid': lambda m: m['segments']['0'].update(offset='16777217'),
    'LUKS payload is overlapping with the header': lambda m: m['segments']['0'].update(offset='16776704'),
    'size 4095 is not valid': lambda m: m['segments']['0'].update(size='4095'),
    "'size' is no decimal number": lambda m: m['segments']['0'].update(size='-1'),
    'iv_tweak 8 is not supported': lambda m: m['segments']['0'].update(iv_tweak='8'),
    "'iv_tweak' is no decimal number": lambda m: m['segments']['0'].update(iv_tweak=''),
    "Algorithm 'cipher_null' with key size": lambda m: m['segments']['0'].update(encryption='cipher_null-ecb-plain64'),
    "IV generator 'random' not supported": lambda m: m['segments']['0'].update(encryption='aes-xts-random'),
    "Encryption 'aes' is not supported": lambda m: m['segments']['0'].update(encryption='aes'),
    "LUKS2 requirement 'fancy' is not supported": lambda m: m['config'].update(requirements={'mandatory': ['fancy']}),
    'is being reencrypted (\'online-reencrypt-v2\')': lambda m: m['config'].update(
        requirements={'mandatory': ['online-reencrypt-v2']}
    ),
    "'keyslots_size' 18446744073709551615 is not valid": lambda m: m['config'].update(keyslots_size=str(2**64 - 1)),
    'LUKS2 segment 0 has no digest': lambda m: m['digests']['0'].update(segments=[]),
    'The LUKS2 volume has no keyslot for its data': lambda m: m['digests']['0'].update(keyslots=['4', 4, None]),
    "LUKS2 digest 0: 'digest' has 3 bytes": lambda m: m['digests']['0'].update(digest='YWJj'),
    'LUKS2 digest 0: it would take too long': lambda m: m['digests']['0'].update(iterations=2**31 - 1),
    "'iterations' is no number between 1": lambda m: m['digests']['0'].update(iterations=0),
    "'segments' is missing or no object": lambda m: m.update(segments=[]),
    "'keyslots' is missing or no object": lambda m: m.pop('keyslots'),
}


@pytest.mark.sanitize
def test_refusals(daemon, tmp):
    """Each says what is not supported, or which number is wrong."""
    path = tmp / 'a.luks'
    format2(path)
    good = path.read_bytes()
    served = daemon(*SECRET)
    for message, change in REFUSALS.items():
        path.write_bytes(good)
        edit(path, change)
        with pytest.raises(QmpError) as refused:
            open_volume(served, path)
        assert message in refused.value.desc, message
    path.write_bytes(good)
    open_volume(served, path)


@pytest.mark.sanitize
def test_damaged_metadata(daemon, tmp):
    """Text that is no JSON, too long, too deep; binary headers that contradict themselves."""
    path = tmp / 'a.luks'
    format2(path, '--luks2-metadata-size', '4m', '--luks2-keyslots-size', '1m')
    good = path.read_bytes()
    served = daemon(*SECRET)
    size = 4 * MIB
    for area, message in (
        (b'', 'LUKS2 metadata is damaged'),
        (b'{', 'LUKS2 metadata is damaged'),
        (b'{} {}', 'LUKS2 metadata is damaged'),
        (b'[' * 5000, 'LUKS2 metadata is damaged'),
        (b'"' + b'x' * (size - 4096 - 1), 'does not end within 1048576 bytes'),
        (b'[]', "'config' is missing"),
        (b'7', "'config' is missing"),
    ):
        for offset in (0, size):
            Metadata2(path, offset).write(area)
        with pytest.raises(QmpError, match=message):
            open_volume(served, path)
        path.write_bytes(good)
    for at, data, message in (
        (6, b'\0\3', 'LUKS version 3 is not supported'),
        (8, bytes(8), 'LUKS2 header size 0 is not valid'),
        (8, bytes(5) + b'\x80\0\0', 'LUKS2 header size 8388608 is not valid'),
        (256, b'\xff' * 8, 'LUKS2 header at offset 0 says that it is at 18446744073709551615'),
        (72, b'foo\0', "LUKS2 header checksum 'foo' is not supported"),
        (72, b'x' * 32, 'checksum name is not NUL terminated'),
        (448, b'xxxx', 'LUKS2 header checksum is wrong'),
        (100, b'x', 'LUKS2 header checksum is wrong'),
    ):
        content = bytearray(good)
        content[at : at + len(data)] = data
        content[size : size + 4096] = bytes(4096)
        path.write_bytes(content)
        with pytest.raises(QmpError, match=message):
            open_volume(served, path)
    for end in (4095, 4096, 8191, size + 4096, 2 * size + 10000):
        path.write_bytes(good[:end])
        with pytest.raises(QmpError):
            open_volume(served, path)


def test_the_newest_whole_copy_is_used(daemon, tmp):
    """They differ in how much data they say there is."""
    path = tmp / 'a.luks'
    format2(path, '--sector-size', 512)
    served = daemon(*SECRET)
    first, second = Metadata2(path), Metadata2(path, 16384)
    assert second.size == 16384

    def size_seen():
        open_volume(served, path)
        size = served.cmd('query-named-block-nodes')[0]['image']['virtual-size']
        served.cmd('blockdev-del', node_name='l')
        return size

    def store(copy, sequence, sectors, checksum=True):
        copy.head[16:24] = sequence.to_bytes(8, 'big')
        copy.json['segments']['0']['size'] = str(512 * sectors)
        copy.write(checksum=checksum)

    store(first, 9, 1)
    store(second, 9, 2)
    assert size_seen() == 512
    store(second, 2**64 - 1, 2)
    assert size_seen() == 1024
    store(second, 10, 3, checksum=False)
    assert size_seen() == 512
    store(second, 3, 2)
    store(first, 9, 4, checksum=False)
    assert size_seen() == 1024
    first.head[0:6] = bytes(6)  # cryptsetup finds the second copy, too
    first.write()
    assert size_seen() == 1024
    cryptsetup_opens(path)
    for copy in first, second:  # cryptsetup has repaired the first one
        copy.head[0:6] = bytes(6)
        copy.write()
    with pytest.raises(QmpError, match='Volume is not in LUKS format'):
        open_volume(served, path)


def test_information_amend_and_resize(daemon, tmp):
    path = tmp / 'a.luks'
    format2(path, '--pbkdf', 'argon2id', '--hash', 'sha512', '--sector-size', 4096)
    served = daemon(*SECRET)
    open_volume(served, path)
    image = served.cmd('query-named-block-nodes')[0]['image']
    assert image['format'] == 'luks' and image['encrypted'] and image['virtual-size'] == SIZE
    data = image['format-specific']['data']
    uuid = output('cryptsetup', 'luksUUID', path).strip()
    slot = {'active': True, 'iters': 4, 'stripes': 4000, 'key-offset': 32768}
    assert data == {
        'cipher-alg': 'aes-256', 'cipher-mode': 'xts', 'ivgen-alg': 'plain64', 'hash-alg': 'sha512',
        'detached-header': False, 'payload-offset': HEAD, 'master-key-iters': 1000, 'uuid': uuid, 'slots': [slot],
    }  # fmt: skip
    with pytest.raises(QmpError, match='Keys of LUKS version 2 cannot be changed here; use cryptsetup'):
        served.qmp.run_job(
            'amend', 'x-blockdev-amend', node_name='l', options={'driver': 'luks', 'state': 'inactive', 'keyslot': 0}
        )
    served.cmd('block_resize', node_name='l', size=SIZE + MIB)
    assert path.stat().st_size == HEAD + SIZE + MIB
    assert served.cmd('query-named-block-nodes')[0]['image']['virtual-size'] == SIZE + MIB


def test_tokens_do_not_matter(daemon, tmp):
    path = tmp / 'a.luks'
    format2(path)
    token = {'type': 'x', 'keyslots': ['0'], 'text': '\u20ac' * 100}
    done = subprocess.run(
        ['cryptsetup', 'token', 'import', path], input=json.dumps(token).encode(), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    open_volume(daemon(*SECRET), path)


def test_password_is_the_whole_secret(daemon, tmp):
    """Bytes that are no text, and a NUL among them."""
    path = tmp / 'a.luks'
    format2(path, '--pbkdf', 'argon2i', password='a\0\u20ac')
    served = daemon('--object', 'secret,id=s,data=YQDigqw=,format=base64', '--object', 'secret,id=t,data=a')
    open_volume(served, path)
    with pytest.raises(QmpError, match='Invalid password'):
        open_volume(served, path, name='m', secret='t')
    assert PASSWORD not in json.dumps(served.cmd('query-named-block-nodes'))
