# SPDX-License-Identifier: Apache-2.0
"""The command granary-pr: what it sends, prints and returns, against good and bad helpers."""

import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess

import pytest

from lib import fakehelper, prtool
from lib.fakehelper import FakeHelper, Target, behave, sense
from lib.prtool import (
    CONFLICT,
    DONE,
    REFUSED,
    TRY_AGAIN,
    UNKNOWN,
    UNREACHABLE,
    USAGE,
    granary_pr,
)
from lib.prwire import READ_FULL_STATUS, REGISTER_AND_IGNORE
from lib.qmp import DEADLINE
from lib.tools import need, need_root, wait_until

pytestmark = pytest.mark.sanitize
A, B = '0xa', '0xfedcba9876543210'
ALL_TYPES = [
    'write-exclusive',
    'exclusive-access',
    'write-exclusive-registrants',
    'exclusive-access-registrants',
    'write-exclusive-all',
    'exclusive-access-all',
]


@pytest.fixture(autouse=True)
def built():
    prtool.need_build()


@pytest.fixture
def disk(tmp):
    path = tmp / 'disk'
    path.write_bytes(b'\0' * 512)
    return path


@pytest.fixture
def target():
    return Target()


@pytest.fixture
def hosts(tmp, disk, target):
    """The command on two hosts, a and b, each with a helper of its own in front of one disk."""
    with FakeHelper(tmp / 'a', behave(target, 'a')) as a, FakeHelper(tmp / 'b', behave(target, 'b')) as b:

        def host(name):
            def run(*args, **options):
                return granary_pr(*args, disk, socket=tmp / name, **options)

            return run

        one, two = host('a'), host('b')
        one.helper, two.helper = a, b
        yield one, two


def one_helper(tmp, disk, script, *args, code):
    with FakeHelper(tmp / 's', script) as helper:
        done = granary_pr(*args, disk, socket=tmp / 's', code=code)
        done.requests = helper.requests
        done.accepted = helper.accepted
    return done


# ---- A good helper ----


def test_two_hosts(hosts):
    """Register, reserve, conflict, preempt, release, clear: each with its effect and its exit status."""
    a, b = hosts
    assert a('keys').out == ''
    assert a('status').out == 'not reserved\nno keys\n'
    assert a('register', '--new-key', A).out == 'registered 0xa\n'
    assert b('register', '--new-key', B.upper().replace('X', 'x')).out == f'registered {B}\n'
    assert b('keys').out == f'{A}\n{B}\n'
    assert a('reservation').out == 'not reserved\n'
    assert a('reserve', '--key', 'a', '--type', 'write-exclusive').out == 'reserved  write-exclusive\n'
    assert b('reservation').out == 'reserved  write-exclusive  by 0xa\n'
    assert (
        b('reserve', '--key', B, '--type', '1', code=CONFLICT)
        .err.strip()
        .endswith('somebody else holds a reservation, or the key is not registered')
    )
    assert b('preempt', '--key', B, '--victim', A).out == 'preempted 0xa\n'
    assert a('reservation').out == f'reserved  write-exclusive  by {B}\n'
    a('clear', '--key', A, code=CONFLICT)
    assert b('release', '--key', B).out == 'released\n'
    assert b('reservation').out == 'not reserved\n'
    assert b('clear', '--key', B).out == 'cleared\n'
    assert b('keys').out == ''


def test_register(hosts, target):
    a, b = hosts
    a('register', '--new-key', '1')
    a('register', '--new-key', '2', code=CONFLICT)
    a('register', '--key', '1', '--new-key', '2')
    assert target.keys == {'a': 2} and not target.aptpl
    a('register', '--ignore', '--new-key', '3', '--aptpl', '--all-target-ports')
    assert target.keys == {'a': 3} and target.aptpl
    last = a.helper.requests[-1]
    assert (last.action, last.data[20], last.keys()) == (REGISTER_AND_IGNORE, 5, (0, 3))
    assert a('register', '--key', '3', '--new-key', '0').out == 'unregistered\n'
    assert target.keys == {}


def test_each_command_as_it_is_sent(hosts, target):
    """CDB and parameter list, byte for byte."""
    a, b = hosts
    a('register', '--new-key', '1')
    a('reserve', '--key', '1', '--type', '6')
    b('register', '--new-key', '2')
    b('preempt', '--key', '2', '--victim', '1', '--type', '3', '--abort')
    b('release', '--key', '2', '--type', '3')
    b('clear', '--key', '2')
    sent = [(r.cdb.hex(), r.data.hex()) for r in a.helper.requests + b.helper.requests]
    one, two, none, rest = f'{1:016x}', f'{2:016x}', f'{0:016x}', '00' * 8
    assert sent == [
        ('5f000000000000001800' + '00' * 6, none + one + rest),
        ('5f010600000000001800' + '00' * 6, one + none + rest),
        ('5f000000000000001800' + '00' * 6, none + two + rest),
        ('5f050300000000001800' + '00' * 6, two + one + rest),
        ('5f020300000000001800' + '00' * 6, two + none + rest),
        ('5f030000000000001800' + '00' * 6, two + none + rest),
    ]


def test_status(hosts, target):
    a, b = hosts
    a('register', '--new-key', A)
    b('register', '--new-key', B)
    a('reserve', '--key', A, '--type', '5')
    assert b('status').out == (
        'reserved  write-exclusive-registrants  by 0xa\n'
        'KEY                 HOLDER  PORT   INITIATOR\n'
        '0xa                 yes     1      iqn.2026-01.org.example:a\n'
        '0xfedcba9876543210  no      1      iqn.2026-01.org.example:b\n'
    )
    port = {'all-ports': False, 'port': 1}
    expected = {
        'device': b('status', '--json').json()['device'],
        'generation': 2,
        'held': True,
        'key': A,
        'type': 'write-exclusive-registrants',
        'full': True,
        'truncated': False,
        'registrants': [
            {'key': A, 'holder': True, **port, 'initiator': 'iqn.2026-01.org.example:a'},
            {'key': B, 'holder': False, **port, 'initiator': 'iqn.2026-01.org.example:b'},
        ],
    }
    assert b('status', '--json').json() == expected
    target.full_status = False
    assert b('status').out == (
        'reserved  write-exclusive-registrants  by 0xa\n'
        'KEY                 HOLDER\n'
        '0xa                 yes\n'
        '0xfedcba9876543210  no\n'
    )
    expected['full'] = False
    expected['registrants'] = [{'key': A, 'holder': True}, {'key': B, 'holder': False}]
    assert b('status', '--json').json() == expected
    target.type = 7
    assert b('status').out.splitlines()[0] == 'reserved  write-exclusive-all  by all registrants'
    assert [r['holder'] for r in b('status', '--json').json()['registrants']] == [True, True]


def test_json_of_what_is_shown(hosts, disk):
    a, b = hosts
    device = {'device': str(disk)}
    assert a('keys', '--json').json() == {**device, 'generation': 0, 'truncated': False, 'keys': []}
    a('register', '--new-key', A)
    assert a('keys', '--json').json() == {**device, 'generation': 1, 'truncated': False, 'keys': [A]}
    free = {**device, 'generation': 1, 'held': False, 'key': None, 'type': None}
    assert a('reservation', '--json').json() == free
    a('reserve', '--key', A, '--type', '8')
    held = {**device, 'generation': 1, 'held': True, 'key': '0x0', 'type': 'exclusive-access-all'}
    assert a('reservation', '--json').json() == held
    assert a('capabilities', '--json').json() == {
        **device,
        'persist-through-power-loss': True,
        'persist-active': False,
        'specify-ports': True,
        'all-ports': True,
        'compatible-handling': True,
        'replace-lost': False,
        'allow-commands': 0,
        'types': ALL_TYPES,
    }
    text = a('capabilities').out
    assert all(re.search(rf'^{name} +yes$', text, re.MULTILINE) for name in ALL_TYPES), text


def test_json_of_changes_and_failures(hosts, disk):
    a, b = hosts
    assert a('register', '--new-key', A, '--json').json() == {
        'device': str(disk),
        'command': 'register',
        'exit': 0,
    }
    done = b('reserve', '--key', B, '--type', '1', '--json', code=CONFLICT)
    answer = done.json()
    assert answer.pop('error') in done.err
    assert answer == {'device': str(disk), 'command': 'reserve', 'exit': 3, 'status': 0x18}
    done = b('release', '--key', B, '--json', '--quiet', code=CONFLICT)
    assert done.err == '' and done.json()['exit'] == 3


def test_any_file_name_is_valid_json(tmp, target):
    path = os.fsencode(tmp) + b'/d"\\\n\xff\xc3\xa4'
    pathlib.Path(os.fsdecode(path)).write_bytes(b'')
    with FakeHelper(tmp / 's', behave(target)):
        done = granary_pr('keys', '--json', os.fsdecode(path), socket=tmp / 's')
    assert done.json()['device'].encode('latin-1') == path


def test_register_and_move(hosts, target):
    a, b = hosts
    a('register', '--new-key', '1')
    b('register', '--new-key', '2')
    a('reserve', '--key', '1', '--type', '3')
    move = ['register-and-move', '--key', '1', '--new-key', '5', '--to']
    assert 'see `status`' in a(*move, 'iqn.nobody', code=USAGE).err
    a(*move, 'iqn.2026-01.org.example:b@2', code=USAGE)
    done = a(*move, 'iqn.2026-01.org.example:b@1', '--unregister')
    assert done.out == 'moved to iqn.2026-01.org.example:b@1\n'
    assert (target.keys, target.holder) == ({'b': 5}, 'b')
    a(*move, 'iqn.2026-01.org.example:b', code=CONFLICT)


def test_the_disk_is_opened_as_needed(hosts, disk):
    """For reading to look, for writing to change, never waiting; and it is the disk that was named."""
    a, b = hosts
    a('keys')
    a('register', '--new-key', '1')
    status = disk.stat()
    modes = [request.flags & os.O_ACCMODE for request in a.helper.requests]
    assert modes == [os.O_RDONLY, os.O_RDWR]
    for request in a.helper.requests:
        assert request.flags & os.O_NONBLOCK
        assert request.disk == (status.st_dev, status.st_ino)


def test_many_keys(hosts, target):
    """The allocation grows to what the device has, up to what a helper passes on; more is reported."""
    a, b = hosts
    target.keys = {f'n{i}': i + 1 for i in range(63)}
    assert len(a('keys').out.splitlines()) == 63
    assert [r.length for r in a.helper.requests] == [512]
    target.keys = {f'n{i}': i + 1 for i in range(64)}
    assert a('keys').out.splitlines()[-1] == '0x40'
    assert [r.length for r in a.helper.requests[1:]] == [512, 520]
    target.keys = {f'n{i}': i + 1 for i in range(1023)}
    assert len(a('keys').out.splitlines()) == 1023
    target.keys = {f'n{i}': i + 1 for i in range(2000)}
    done = a('keys')
    assert len(done.out.splitlines()) == 1023
    assert 'not complete' in done.err
    assert a.helper.requests[-1].length == 8192
    done = a('keys', '--json', '-q')
    assert done.json()['truncated'] is True and len(done.json()['keys']) == 1023 and done.err == ''
    assert a('status', '--json').json()['truncated'] is True


def test_unit_attentions_are_passed_over(hosts, target):
    a, b = hosts
    for asc, ascq in ((0x29, 0), (0x2A, 3), (0x2A, 4), (0x2A, 5), (0x3F, 0x0E)):
        target.attention('a', asc, ascq)
    a('register', '--new-key', '1')
    assert target.keys == {'a': 1} and len(a.helper.requests) == 6
    for _ in range(6):
        target.attention('a', 0x29, 0)
    done = a('keys', '--json', code=TRY_AGAIN)
    assert done.json()['sense'] == {'key': 6, 'asc': 0x29, 'ascq': 0}


@pytest.mark.parametrize('piece', [1, 7])
def test_slow_helper(tmp, disk, target, piece):
    target.keys = {'x': 0x77}
    assert one_helper(tmp, disk, behave(target, piece=piece), 'keys', code=DONE).out == '0x77\n'


def test_socket_from_the_environment(tmp, disk, target):
    target.keys = {'x': 1}
    with FakeHelper(tmp / 's', behave(target)):
        environment = {'GRANARY_PR_SOCKET': str(tmp / 's')}
        assert granary_pr('keys', disk, environment=environment).out == '0x1\n'
        granary_pr('keys', disk, socket=tmp / 'other', environment=environment, code=UNREACHABLE)


# ---- Refusals ----


@pytest.mark.parametrize(
    'status, sense_data, reading, changing',
    [
        (0x08, b'', TRY_AGAIN, TRY_AGAIN),  # BUSY
        (0x28, b'', TRY_AGAIN, TRY_AGAIN),  # TASK SET FULL
        (0x18, b'', CONFLICT, CONFLICT),
        (0x02, sense(5, 0x20, 0), REFUSED, REFUSED),
        (0x02, sense(5, 0x24, 0), REFUSED, REFUSED),
        (0x02, sense(2, 0x04, 0x03), REFUSED, REFUSED),  # somebody has to do something
        (0x02, sense(2, 0x04, 0x01), TRY_AGAIN, TRY_AGAIN),  # becoming ready
        (0x02, sense(4, 0x44, 0), REFUSED, REFUSED),
        (0x02, sense(0xB, 0x00, 0x06), TRY_AGAIN, TRY_AGAIN),
        (0x02, sense(0xB, 0x2E, 0x02), TRY_AGAIN, UNKNOWN),  # timed out at the device
        (0x02, sense(0xB, 0x08, 0x00), TRY_AGAIN, UNKNOWN),
        (0x02, sense(1, 0x0B, 0x01), TRY_AGAIN, DONE),  # recovered
        (0x02, b'', REFUSED, REFUSED),  # no sense to be read
        (0x02, b'\xff' * 96, REFUSED, REFUSED),
        (0xFF, b'', TRY_AGAIN, TRY_AGAIN),
    ],
)
def test_exit_status_of_an_answer(tmp, disk, status, sense_data, reading, changing):
    script = fakehelper.answer(fakehelper.reply_bytes(status, b'', sense_data))
    one_helper(tmp, disk, script, 'keys', code=reading)
    done = one_helper(tmp, disk, script, 'clear', '--key', '1', '--json', code=changing)
    assert done.json()['exit'] == changing
    if changing not in (DONE, CONFLICT):
        assert done.json()['status'] == status
    if changing == UNKNOWN:
        assert 'may or may not' in done.err


def test_short_answers(tmp, disk):
    """A device that returns less than a header."""
    for size in (0, 4, 7):
        script = fakehelper.answer(fakehelper.reply_bytes(payload=b'\0' * size), then=fakehelper.Peer.hang)
        done = one_helper(tmp, disk, script, 'keys', '--json', code=DONE)
        assert done.json()['keys'] == [] and done.json()['truncated'] is True
        one_helper(tmp, disk, script, 'capabilities', code=REFUSED)


def test_contradictory_full_status(tmp, disk, target):
    """Descriptors that claim more than there is."""

    def lie(peer, request):
        if request.action != READ_FULL_STATUS:
            return False
        descriptor = struct.pack('>QIBBIHI', 7, 0, 1, 5, 0, 1, 0xFFFFFF00)
        peer.reply(payload=struct.pack('>II', 0, 0xFFFFFFFF) + descriptor + b'\xff' * 40)
        return True

    done = one_helper(tmp, disk, behave(target, before=lie), 'status', '--json', code=DONE)
    assert done.json()['registrants'] == [] and done.json()['truncated'] is True


# ---- No helper, bad helpers ----


def test_nothing_to_reach(tmp, disk):
    done = granary_pr('keys', disk, socket=tmp / 'none', code=UNREACHABLE)
    assert done.err == f'granary-pr: {disk}: keys: no helper at {tmp}/none: No such file or directory\n'
    (tmp / 'file').write_bytes(b'')
    assert 'refused' in granary_pr('keys', disk, socket=tmp / 'file', code=UNREACHABLE).err
    granary_pr('keys', disk, socket='/' + 'x' * 120, code=UNREACHABLE)
    assert 'cannot open' in granary_pr('keys', tmp / 'no-disk', socket=tmp / 'none', code=UNREACHABLE).err
    failure = granary_pr('clear', '--key', '1', disk, '--json', socket=tmp / 'none', code=UNREACHABLE).json()
    assert failure['exit'] == UNREACHABLE and 'status' not in failure


def test_a_reader_may_not_change(tmp, disk, target):
    """Without permission to write to the disk nothing goes to the helper."""
    need_root('to become somebody else')
    tmp.chmod(0o755)
    disk.chmod(0o444)
    program = shutil.copy(prtool.BINARY, tmp / 'granary-pr')  # the tree may be where others may not look
    with FakeHelper(tmp / 's', behave(target)) as helper:
        os.chmod(tmp / 's', 0o777)
        command = [program, '--socket', str(tmp / 's')]
        nobody = {'user': 65534, 'group': 65534, 'extra_groups': [], 'capture_output': True, 'check': False}
        assert subprocess.run([*command, 'keys', str(disk)], **nobody).returncode == DONE
        done = subprocess.run([*command, 'clear', '--key', '1', str(disk)], **nobody)
        assert done.returncode == UNREACHABLE and b'Permission denied' in done.stderr
        assert len(helper.requests) == 1


@pytest.mark.parametrize(
    'script', [fakehelper.refuse, fakehelper.never_hello, fakehelper.half_hello], ids=lambda s: s.__name__
)
def test_helper_that_does_not_greet(tmp, disk, script):
    done = one_helper(tmp, disk, script, 'clear', '--key', '1', '--timeout', '1', code=UNREACHABLE)
    assert done.requests == []


def test_helper_that_does_not_answer(tmp, disk):
    done = one_helper(
        tmp, disk, fakehelper.never_answer, 'clear', '--key', '1', '--timeout', '1', code=UNKNOWN
    )
    assert 'no answer within 1 s; it may or may not have been carried out' in done.err
    assert len(done.requests) == 1


@pytest.mark.parametrize(
    'data',
    [
        b'',
        fakehelper.reply_bytes()[:1],
        fakehelper.reply_bytes()[:103],
        fakehelper.reply_bytes(payload=b'12345678')[:-1],
        fakehelper.reply_bytes(status=0x100),
        fakehelper.reply_bytes(status=0xFFFFFF00),
        fakehelper.reply_bytes(size=0xFFFFFFFF),
        fakehelper.reply_bytes(payload=b'x' * 600),
        fakehelper.reply_bytes(status=2, payload=b'12345678', sense_data=sense(5, 0x20, 0)),
    ],
    ids=lambda data: data[:8].hex() + f'-{len(data)}',
)
def test_answers_that_make_no_sense(tmp, disk, data):
    """Nothing crashes, nothing is repeated, and the outcome is said to be unknown."""
    done = one_helper(tmp, disk, fakehelper.answer(data), 'keys', code=UNKNOWN)
    assert len(done.requests) == 1 and done.accepted == 1


def test_payload_for_a_change(tmp, disk):
    script = fakehelper.answer(fakehelper.reply_bytes(payload=b'x'))
    assert 'makes no sense' in one_helper(tmp, disk, script, 'clear', '--key', '1', code=UNKNOWN).err


@pytest.mark.parametrize('what', ['hello', 'features', *range(17), 'cdb', 'list'])
def test_helper_that_closes(tmp, disk, what):
    """At each point: nothing is sent twice, and the exit status says whether it was sent."""
    with FakeHelper(tmp / 's', fakehelper.close_after(what)) as helper:
        done = prtool.Ended(
            subprocess.run(
                [prtool.BINARY, '--socket', str(tmp / 's'), 'clear', '--key', '1', str(disk)],
                capture_output=True,
                check=False,
                timeout=DEADLINE,
            )
        )
    if what in ('hello', 'features', 0):
        # Ended before the command, maybe while the connection was idle: then it is tried over a new one.
        assert helper.accepted in (1, 2)
    else:
        assert helper.accepted == 1 and done.code == UNKNOWN
    assert done.code in (UNREACHABLE, UNKNOWN)
    assert ('may or may not' in done.err) == (done.code == UNKNOWN), done.err


# ---- The command line ----


@pytest.mark.parametrize(
    'args, message',
    [
        ([], 'a command and a device are needed'),
        (['keys'], 'a command and a device are needed'),
        (['keys', '/dev/null', '/dev/null'], 'too many arguments'),
        (['destroy', '/dev/null'], "there is no command 'destroy'"),
        (['keys', '--key', '1', '/dev/null'], 'keys takes no --key'),
        (['clear', '/dev/null'], 'clear needs --key'),
        (['register', '/dev/null'], 'register needs --new-key'),
        (['reserve', '--key', '1', '/dev/null'], 'reserve needs --type'),
        (['preempt', '--key', '1', '/dev/null'], 'preempt needs --victim'),
        (['clear', '--key', '0x', '/dev/null'], "'0x' is no key"),
        (['clear', '--key', '', '/dev/null'], "'' is no key"),
        (['clear', '--key', '-1', '/dev/null'], "'-1' is no key"),
        (['clear', '--key', '12345678901234567', '/dev/null'], 'is no key'),
        (['clear', '--key', '0x0x1', '/dev/null'], 'is no key'),
        (['reserve', '--key', '1', '--type', '2', '/dev/null'], "'2' is no type of reservation"),
        (['reserve', '--key', '1', '--type', 'mine', '/dev/null'], "'mine' is no type of reservation"),
        (['register', '--key', '1', '--ignore', '--new-key', '2', '/dev/null'], 'exclude each other'),
        (['keys', '--direct', '--socket', 'x', '/dev/null'], 'exclude each other'),
        (['keys', '--timeout', '0', '/dev/null'], 'no number of seconds'),
        (['keys', '--timeout', '1e3', '/dev/null'], 'no number of seconds'),
        (['keys', '--timeout', '99999999999999999999', '/dev/null'], 'no number of seconds'),
        (['keys', '--nonsense', '/dev/null'], 'nonsense'),
        (['keys', '/dev/null', '--socket'], 'socket'),
    ],
)
def test_usage(args, message):
    done = granary_pr(*args, code=USAGE)
    assert message in done.err and done.out == ''


def test_help_and_version():
    text = granary_pr('--help').out
    manual = (pathlib.Path(__file__).parents[1] / 'docs' / 'granary-pr.1').read_text()
    for option in re.findall(r'--([\w-]+)', text):
        assert f'Fl -{option}' in manual or f', -{option}' in manual, option
    for command in re.findall(r'^  ([a-z-]+) {2,}', text, re.MULTILINE):
        if not command.startswith('-'):
            assert f'.It Cm {command}' in manual, command
    assert re.fullmatch(r'granary-pr \d+\.\d+\.\d+\n', granary_pr('--version').out)


def test_output_that_cannot_be_written(tmp, disk, target):
    with FakeHelper(tmp / 's', behave(target)):
        for args, code in ((['keys', '--json'], TRY_AGAIN), (['register', '--new-key', '1'], DONE)):
            with open('/dev/full', 'wb') as full:
                done = subprocess.run(
                    [prtool.BINARY, '--socket', str(tmp / 's'), *args, str(disk)],
                    stdout=full,
                    stderr=subprocess.PIPE,
                    check=False,
                )
            assert done.returncode == code and b'cannot write' in done.stderr
    assert target.keys == {'a': 1}


# ---- Real helpers ----


@pytest.fixture
def reference(tmp):
    """The reference's helper."""
    need('qemu-pr-helper')
    need_root('the reference helper gives up privileges')
    process = subprocess.Popen(['qemu-pr-helper', '-k', str(tmp / 'q')], stderr=subprocess.DEVNULL)
    wait_until((tmp / 'q').exists, 'the socket')
    yield tmp / 'q'
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0


def test_reference_helper(reference, disk):
    """What it says about a file that is no disk."""
    failure = granary_pr('keys', '--json', disk, socket=reference, code=TRY_AGAIN).json()
    assert failure['sense'] == {'key': 0xB, 'asc': 0, 'ascq': 6} and failure['status'] == 2
    granary_pr('register', '--new-key', '1', disk, socket=reference, code=TRY_AGAIN)


def helpers():
    """Process ids of our helpers that were started directly."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        try:
            words = path.read_bytes().split(b'\0')
        except OSError:
            continue
        if words[0] == prtool.HELPER.encode() and b'--allow-uid' in words:
            found.append(int(path.parent.name))
    return found


def test_direct(disk):
    """A helper for one command: it is asked, and gone afterwards."""
    need_root('the helper needs privileges')
    args = ['--direct', '--helper', prtool.HELPER, '--json', disk]
    failure = granary_pr('keys', *args, code=REFUSED).json()
    assert failure['sense'] == {'key': 5, 'asc': 0x20, 'ascq': 0}
    granary_pr('clear', '--key', '1', *args, code=REFUSED)
    assert helpers() == []


def test_direct_without_helper(tmp, disk):
    args = ['keys', '--direct', disk, '--helper']
    done = granary_pr(*args, tmp / 'none', code=UNREACHABLE)
    assert 'Cannot run' in done.err and 'the helper does not start' in done.err
    assert 'the helper does not start' in granary_pr(*args, '/bin/false', code=UNREACHABLE).err


def test_direct_passes_a_socket(tmp, disk):
    """What a helper gets: a listening socket as service managers pass it, and whom to serve."""
    script = tmp / 'helper'
    script.write_text(
        '#!/bin/sh\n'
        f'echo "$LISTEN_FDS $(test "$LISTEN_PID" = $$ && echo same) $*" > {tmp}/seen\n'
        f'readlink /proc/$$/fd/3 >> {tmp}/seen\n'
    )
    script.chmod(0o755)
    granary_pr('keys', '--direct', disk, '--helper', script, code=UNREACHABLE)
    lines = (tmp / 'seen').read_text().splitlines()
    assert lines[0] == f'1 same --quiet --allow-uid {os.getuid()}'
    assert re.fullmatch(r'socket:\[\d+\]', lines[1])


def test_root_without_socket_goes_direct(tmp, disk):
    """In a mount namespace whose /run is empty; anybody else is told what to do."""
    need_root('the helper needs privileges')
    need('unshare', 'mount', 'setpriv')
    empty = ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none /run && exec "$@"', 'sh']
    if subprocess.run([*empty, 'true'], capture_output=True, check=False).returncode:
        pytest.skip('no mount namespaces here')
    command = [prtool.BINARY, 'keys', str(disk), '--helper', prtool.HELPER]
    done = subprocess.run([*empty, *command], capture_output=True, check=False)
    assert done.returncode == REFUSED, done.stderr
    tmp.chmod(0o755)
    nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups']
    command[0] = shutil.copy(prtool.BINARY, tmp / 'granary-pr')
    done = subprocess.run([*empty, *nobody, *command], capture_output=True, check=False)
    assert done.returncode == UNREACHABLE and b'name one with --socket' in done.stderr


def test_hung_helper_is_ended(tmp, disk):
    """One that neither answers nor obeys does not keep the command."""
    script = tmp / 'helper'
    script.write_text('#!/bin/sh\ntrap "" TERM\necho $$ > ' + f'{tmp}/pid\n' + 'exec sleep 1000\n')
    script.chmod(0o755)
    granary_pr('keys', '--direct', disk, '--helper', script, '--timeout', '1', code=UNREACHABLE)
    pid = int((tmp / 'pid').read_text())
    wait_until(lambda: not os.path.exists(f'/proc/{pid}'), 'the end of the helper')
