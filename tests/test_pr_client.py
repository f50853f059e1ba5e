# SPDX-License-Identifier: Apache-2.0
"""libgranary-pr as programs get it: what is installed, the examples, the shared library against helpers.

The details of the conversation are in the unit test src/pr-client/test-pr-client.c.
"""

import array
import ctypes
import errno
import os
import re
import signal
import socket
import subprocess
import threading

import pytest

from lib import fakehelper, prtool
from lib.fakehelper import FakeHelper, Target, behave, sense
from lib.prwire import CHECK_CONDITION, CLEAR, READ_KEYS, RESERVATION_CONFLICT
from lib.qmp import DEADLINE
from lib.tools import TOP, need, need_root, output, run, wait_until

class Result(ctypes.Structure):
    _fields_ = [
        ('status', ctypes.c_uint8),
        ('data_bytes', ctypes.c_uint32),
        ('sense', ctypes.c_uint8 * 96),
    ]


@pytest.fixture(scope='module')
def library():
    prtool.need_build()
    if b'__asan_init' in prtool.LIBRARY.read_bytes():
        pytest.skip('a library with a sanitizer cannot be loaded into this Python')
    loaded = ctypes.CDLL(str(prtool.LIBRARY), use_errno=True)
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    loaded.granary_pr_new.restype = pointer
    loaded.granary_pr_new.argtypes = [ctypes.c_char_p]
    loaded.granary_pr_features.restype = ctypes.c_uint32
    for name in ('free', 'is_connected', 'disconnect', 'features', 'was_sent', 'cancel', 'dispatch', 'fd'):
        getattr(loaded, f'granary_pr_{name}').argtypes = [pointer]
    loaded.granary_pr_connect.argtypes = [pointer, number]
    command = [pointer, number, ctypes.c_char_p, size, pointer, size, number, ctypes.POINTER(Result)]
    loaded.granary_pr_execute.argtypes = loaded.granary_pr_start.argtypes = command
    loaded.granary_pr_cleanup.argtypes = [pointer, number, number, ctypes.POINTER(Result)]
    return loaded


class Client:
    """A granary_pr with room for data."""

    def __init__(self, library, path):
        self.library = library
        self.pr = library.granary_pr_new(os.fsencode(path))
        assert self.pr
        self.data = ctypes.create_string_buffer(8192)
        self.result = Result()

    def call(self, name, *args):
        return getattr(self.library, f'granary_pr_{name}')(self.pr, *args)

    def execute(self, disk, cdb, data=b'', timeout_ms=int(DEADLINE * 1000)):
        """0 or an error number, which is positive here."""
        ctypes.memmove(self.data, data, len(data))
        room = len(data) if cdb[0] == fakehelper.OUT else 8192
        return -self.call(
            'execute', disk.fileno(), cdb, len(cdb), self.data, room, timeout_ms, ctypes.byref(self.result)
        )

    def payload(self):
        return self.data.raw[: self.result.data_bytes]

    def sense(self):
        return self.result.sense[2] & 0xF, self.result.sense[12], self.result.sense[13]

    def close(self):
        self.library.granary_pr_free(self.pr)


@pytest.fixture
def client(library, tmp):
    one = Client(library, tmp / 's')
    yield one
    one.close()


@pytest.fixture
def disk(tmp):
    with open(tmp / 'disk', 'w+b') as file:
        yield file


def read_keys(length=8192):
    return bytes([fakehelper.IN, READ_KEYS, 0, 0, 0, 0, 0, length >> 8, length & 0xFF, 0])


def clear(key):
    cdb = bytes([fakehelper.OUT, CLEAR, 0, 0, 0, 0, 0, 0, 24, 0])
    return cdb, key.to_bytes(8, 'big') + bytes(16)


# ---- What is installed ----


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The environment of a compiler that finds the installed library."""
    prtool.need_build()
    need('meson', 'pkg-config', 'cc')
    top = tmp_path_factory.mktemp('installed')
    run('meson', 'install', '-C', prtool.BUILD, '--no-rebuild', '--quiet', '--destdir', top)
    package = next(top.rglob('libgranary-pr.pc'))
    return dict(
        os.environ,
        PKG_CONFIG_PATH=str(package.parent),
        PKG_CONFIG_SYSROOT_DIR=str(top),
        LD_LIBRARY_PATH=str(package.parent.parent),
        DESTDIR=str(top),
    )


@pytest.fixture(scope='module')
def example(installed, tmp_path_factory):
    """Builds an example as a user would."""

    def build(name):
        program = tmp_path_factory.mktemp('example') / name
        source = next(iter(find_installed(installed, f'{name}.c')))
        flags = output('pkg-config', '--cflags', '--libs', 'libgranary-pr', env=installed).split()
        compiler = ['cc', '-std=c17', '-D_GNU_SOURCE', '-Wall', '-Wextra', '-Wno-unused-parameter', '-Werror']
        sanitized = b'__asan_init' in prtool.LIBRARY.read_bytes()
        sanitizer = ['-fsanitize=address,undefined'] if sanitized else []
        run(*compiler, *sanitizer, '-o', program, source, *flags, env=installed)
        return program

    return build


def find_installed(environment, name):
    return list(os.path.join(d, name) for d, _, files in os.walk(environment['DESTDIR']) if name in files)


def test_only_the_interface_is_exported():
    prtool.need_build()
    need('nm', 'readelf')
    header = (TOP / 'src/pr-client/granary-pr.h').read_text()
    code = re.sub(r'/\*.*?\*/', '', header, flags=re.DOTALL)
    declared = set(re.findall(r'\b(granary_pr_\w+)\(', code))
    lines = output('nm', '-D', '--defined-only', prtool.LIBRARY).split('\n')
    assert {line.split()[-1] for line in lines if line} == declared
    dynamic = output('readelf', '-d', prtool.LIBRARY)
    assert 'SONAME' in dynamic and '[libgranary-pr.so.0]' in dynamic
    needed = set(re.findall(r'NEEDED.*\[(.*)\]', dynamic))
    assert {name for name in needed if 'san' not in name} <= {'libc.so.6', 'libgcc_s.so.1', 'libm.so.6'}
    if b'__asan_init' not in prtool.LIBRARY.read_bytes():
        assert needed == {'libc.so.6'}
    manual = (TOP / 'docs/libgranary-pr.3').read_text()
    for name in declared:
        assert f'.Nm {name}' in manual and re.search(rf'^\.F[no] {name}\b', manual, re.MULTILINE), name


def test_installed_files(installed):
    manuals = ('libgranary-pr.3', 'granary-pr.1')
    for name in ('granary-pr.h', 'libgranary-pr.so', 'libgranary-pr.so.0', 'granary-pr', *manuals):
        assert find_installed(installed, name), name
    assert output('pkg-config', '--modversion', 'libgranary-pr', env=installed).strip()


@pytest.mark.parametrize('language', [('c', 'c99'), ('c++', 'c++11')], ids=lambda x: x[1])
def test_the_header_is_plain(installed, tmp, language):
    compiler = {'c': 'cc', 'c++': 'c++'}[language[0]]
    need(compiler)
    (tmp / 'x').write_text('#include <granary-pr.h>\n')
    flags = output('pkg-config', '--cflags', 'libgranary-pr', env=installed).split()
    strict = ['-fsyntax-only', '-Wall', '-Wextra', '-pedantic', '-Werror']
    run(compiler, '-x', language[0], f'-std={language[1]}', *strict, *flags, tmp / 'x')


def test_example_keys(installed, example, tmp, disk):
    target = Target()
    target.keys = {'x': 0xA, 'y': 0xFEDCBA9876543210}
    target.attention('a', 0x29, 0)
    target.attention('a', 0x2A, 3)
    program = example('pr-keys')
    with FakeHelper(tmp / 's', behave(target)):
        text = output(program, tmp / 's', disk.name, env=installed)
    assert text == '0xa\n0xfedcba9876543210\n'
    done = run(program, tmp / 's', disk.name, env=installed, ok=(1,))
    assert done.stderr == b'no answer: No such file or directory\n'
    run(program, ok=(1,), env=installed)


def test_example_watch(installed, example, tmp, disk):
    """Several disks at once: what is answered does not wait for what is not; SIGINT ends that."""
    target = Target()
    target.keys, target.holder, target.type = {'a': 1}, 'a', 1
    for name in ('slow', 'fast1', 'fast2'):
        (tmp / name).write_bytes(b'')
    slow = (tmp / 'slow').stat().st_ino

    def stall(peer, request):
        if request.disk[1] == slow:
            peer.hang()

    with FakeHelper(tmp / 's', behave(target, before=stall)) as helper:
        names = [str(tmp / name) for name in ('slow', 'fast1', 'fast2')]
        process = subprocess.Popen(
            ['stdbuf', '-oL', example('pr-watch'), tmp / 's', *names], stdout=subprocess.PIPE, env=installed
        )
        helper.wait_requests(3)
        lines = {process.stdout.readline().decode() for _ in range(2)}
        assert lines == {f'{names[1]}: reserved\n', f'{names[2]}: reserved\n'}
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().decode() == f'{names[0]}: Operation canceled\n'
        assert process.wait(DEADLINE) == 0


# ---- The shared library, against scripted helpers ----


def test_many_commands_on_one_connection(client, tmp, disk):
    target = Target()
    target.keys = {'x': 0x1122334455667788}
    with FakeHelper(tmp / 's', behave(target, features=1)) as helper:
        for _ in range(200):
            assert client.execute(disk, read_keys()) == 0
            assert client.payload()[8:].hex() == '1122334455667788'
        cdb, data = clear(0x99)
        assert client.execute(disk, cdb, data) == 0 and client.result.status == RESERVATION_CONFLICT
        assert helper.accepted == 1 and helper.peers[0].features == 1
        assert client.call('features') == 1
        assert -client.call('cleanup', disk.fileno(), 1000, ctypes.byref(client.result)) == 0


def test_late_hello(client, tmp, disk):
    event = threading.Event()
    with FakeHelper(tmp / 's', fakehelper.wait_for(event, behave(Target()))):
        assert -client.call('connect', 50) == errno.ETIMEDOUT
        event.set()
        assert client.execute(disk, read_keys()) == 0


def test_cancel_from_another_thread(client, tmp, disk):
    """At each point where the helper can keep a client waiting."""
    for script, sent in (
        (fakehelper.never_hello, 0),
        (fakehelper.half_hello, 0),
        (fakehelper.never_answer, 1),
        (fakehelper.answer(fakehelper.reply_bytes(payload=b'12345678')[:50], then=fakehelper.Peer.hang), 1),
        (fakehelper.answer(fakehelper.reply_bytes(payload=b'12345678')[:-1], then=fakehelper.Peer.hang), 1),
    ):
        with FakeHelper(tmp / 's', script) as helper:
            outcome = []
            thread = threading.Thread(
                target=lambda: outcome.append(client.execute(disk, read_keys(), timeout_ms=-1))
            )
            thread.start()
            helper.wait_connections(1)
            if sent:
                helper.wait_requests(1)
            client.call('cancel')
            thread.join(DEADLINE)
            assert outcome == [errno.ECANCELED]
            assert client.call('was_sent') == sent
            helper.wait_connections(0)


def test_helper_that_dies_again_and_again(client, tmp, disk):
    """Each command after a death goes over a new connection, without an error; idle death is noticed."""
    target = Target()
    with FakeHelper(tmp / 's', behave(target)) as helper:
        for count in range(1, 20):
            assert client.execute(disk, read_keys()) == 0
            assert helper.accepted == count
            helper.disconnect()
            if count % 2:
                assert client.call('is_connected') == 0
        assert len(helper.requests) == 19


def test_helper_that_is_restarted(client, tmp, disk):
    with FakeHelper(tmp / 's', behave(Target())):
        assert client.execute(disk, read_keys()) == 0
    assert client.execute(disk, read_keys()) == errno.ENOENT
    assert client.call('was_sent') == 0
    with FakeHelper(tmp / 's', behave(Target())):
        assert client.execute(disk, read_keys()) == 0


def descriptors_of_null():
    """Those of this process."""
    links = []
    for fd in os.listdir('/proc/self/fd'):
        try:
            links.append(os.readlink(f'/proc/self/fd/{fd}'))
        except FileNotFoundError:  # that of the directory
            pass
    return [link for link in links if link == '/dev/null']


def test_descriptors_from_a_helper_are_not_kept(client, tmp, disk):
    """A helper that passes descriptors along with its hello and its reply."""
    before = len(descriptors_of_null())

    def generous(peer):
        with open('/dev/null', 'rb') as null:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [null.fileno()] * 5))]
            peer.sock.sendmsg([b'\0\0\0\0'], rights)
            peer.read(4)
            peer.request()
            peer.sock.sendmsg([fakehelper.reply_bytes()], rights)
            peer.hang()

    with FakeHelper(tmp / 's', generous) as helper:
        assert client.execute(disk, read_keys()) == 0
        client.call('disconnect')
        helper.wait_connections(0)
        assert len(descriptors_of_null()) == before


def test_sense_and_status(client, tmp, disk):
    script = fakehelper.answer(
        fakehelper.reply_bytes(2, b'', sense(6, 0x2A, 0x05).ljust(96, b'\x77')), then=fakehelper.Peer.hang
    )
    with FakeHelper(tmp / 's', script):
        assert client.execute(disk, read_keys()) == 0
        assert client.result.status == 2 and client.sense() == (6, 0x2A, 5)
        assert bytes(client.result.sense)[18:] == b'\x77' * 78


# ---- Real helpers ----


@pytest.mark.parametrize('program', ['qemu-pr-helper', 'ours'])
def test_real_helper(client, tmp, disk, program):
    """What it says about a file; that it died while idle is noticed; the next one is used."""
    need_root('helpers give up privileges')
    ours = program == 'ours'
    if ours:
        program = prtool.HELPER
    else:
        need(program)

    def start():
        process = subprocess.Popen([program, '-q', '-k', str(tmp / 's')])
        wait_until((tmp / 's').exists, 'the socket')
        return process

    for _ in range(2):
        process = start()
        try:
            wait_until(lambda: client.call('connect', 60000) == 0, 'a connection')
            for cdb, data in ((read_keys(), b''), clear(1)):
                assert client.execute(disk, cdb, data) == 0
                assert client.result.status == CHECK_CONDITION
                assert client.sense() == ((5, 0x20, 0) if ours else (0xB, 0, 6))
            assert client.call('is_connected') == 1
            offered = client.call('features') & 1
            outcome = -client.call('cleanup', disk.fileno(), 60000, ctypes.byref(client.result))
            assert outcome == (0 if offered else errno.EOPNOTSUPP)
            assert client.call('is_connected') == 1
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0
        wait_until(lambda: not client.call('is_connected'), 'the end of the connection')
        assert client.execute(disk, read_keys()) in (errno.ENOENT, errno.ECONNREFUSED)
