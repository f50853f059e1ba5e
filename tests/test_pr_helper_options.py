# SPDX-License-Identifier: Apache-2.0
"""The reservation helper's command line: exit codes and messages, mostly those of the reference."""

import os
import re
import subprocess

import pytest

from lib import peers, prhelper
from lib.qmp import DEADLINE
from lib.tools import run

REFERENCE = next(iter(peers.pr_helpers()), None)


def answer(binary, directory, args):
    """(exit status, output, errors) of a start that ends at once, with the program's name replaced."""
    plain = ['--no-sandbox'] if prhelper.sanitized(binary) else []
    done = subprocess.run(
        [binary, *plain, *args],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    texts = [text.decode().replace(str(binary), 'PROGRAM') for text in (done.stdout, done.stderr)]
    return done.returncode, *texts


@pytest.fixture
def ours(helpers, tmp):
    """Starts the program; what starts although it should not is ended with the test."""
    return lambda *args: answer(helpers().binary, tmp, args)


SAME = [
    ['-x'],
    ['--bogus'],
    ['--verb', '--bogus'],
    ['--quiet=3'],
    ['--version=1'],
    ['--socket'],
    ['-k'],
    ['-f'],
    ['-u'],
    ['-T'],
    ['-k', ''],
    ['--socket='],
    ['-k', 'relative.sock'],
    ['-k', './relative.sock'],
    ['-k', '/tmp/' + 'x' * 104],
    ['-k', '/tmp/' + 'x' * 300],
    ['-k', '/missing/dir/x.sock'],
    ['-k', '/proc/x.sock'],
    ['-u', 'nosuchuser'],
    ['-u', ''],
    ['-u', '-1'],
    ['-u', '12x'],
    ['-u', '99999999999'],
    ['-g', 'nosuchgroup'],
    ['-g', ''],
    ['-g', '12x'],
    ['-u', 'nosuchuser', '-g', 'nosuchgroup'],
    ['-k', 'relative', '-u', 'nosuchuser'],
    ['-u', 'nosuchuser', '--bogus'],
    ['-k', '/missing/dir/x.sock', '-f', '/missing/dir/p'],
]


@pytest.mark.parametrize('args', SAME, ids=lambda args: ' '.join(args)[:40])
def test_same_errors_as_the_reference(ours, tmp, args):
    if not REFERENCE:
        pytest.skip('missing package qemu-system-common (program qemu-pr-helper)')
    theirs = answer(REFERENCE, tmp, args)
    assert theirs[0] == 1, theirs
    assert ours(*args) == theirs


# Errors whose text is ours alone: what must be in it.
@pytest.mark.parametrize(
    'args, words',
    [
        (['-k', '/dev/null/x.sock'], '/dev/null/x.sock: Not a directory'),
        (['-f', '/missing/dir/p'], "Could not create '/missing/dir/p': No such file or directory"),
        (['-f', '/tmp'], "Could not create '/tmp': Is a directory"),
        (['-f', ''], "Could not create ''"),
        (['-T', 'file=/missing/dir/trace'], '/missing/dir/trace'),
        (['-T', 'events=/missing/dir/events'], '/missing/dir/events'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_errors(helpers, tmp, args, words):
    one = helpers()
    code, out, err = answer(one.binary, tmp, ['-k', str(one.path), *args])
    assert (code, out) == (1, '')
    assert words in err and err.count('\n') == 1, err
    assert err.startswith('qemu-pr-helper:'), err
    if one.path.exists():
        assert 'qemu' in os.path.basename(os.path.realpath(one.binary)), 'the socket is left behind'
        one.path.unlink()


@pytest.mark.better
@pytest.mark.parametrize(
    'args',
    [
        ['--sg-timeout', '0'],
        ['--sg-timeout', '1x'],
        ['--sg-timeout=-1'],
        ['--handshake-timeout', '0'],
        ['--request-timeout', '0'],
        ['--idle-timeout', 'never'],
        ['--idle-timeout', '99999999999999999999'],
        ['--stop-timeout', ' 1'],
        ['--max-clients', '0'],
        ['--max-clients', '1000000'],
        ['--socket-mode', '888'],
        ['--socket-mode', '1777'],
        ['--socket-mode', ''],
        ['--socket-mode', 'u+rw'],
        ['--socket-group', 'nosuchgroup'],
        ['--allow-uid', 'nosuchuser'],
        ['--allow-uid', '1,,2'],
        ['--allow-uid', ''],
        ['--allow-uid', ','.join(str(uid) for uid in range(1000))],
        ['--no-sandbox=1'],
        ['--sg-timeout'],
    ],
    ids=lambda args: ' '.join(args)[:40],
)
def test_errors_of_our_own_options(helpers, tmp, args):
    """One line that names the option or the value, and nothing is left behind."""
    one = helpers()
    code, out, err = answer(one.binary, tmp, ['-k', str(one.path), *args])
    assert (code, out) == (1, '')
    assert err.startswith(('qemu-pr-helper: ', 'PROGRAM: ')), err
    assert args[0].split('=')[0].lstrip('-') in err or args[-1] in err or "invalid user ''" in err, err
    assert err.count('\n') == (2 if 'more information' in err else 1), err
    assert not one.path.exists()


@pytest.mark.sanitize
def test_help(ours):
    code, out, err = ours('-h')
    assert (code, err) == (0, '')
    assert out.startswith('Usage: ')
    for word in ('-d, --daemon', '-f, --pidfile=PATH', '-k, --socket=PATH', '-T, --trace', '-u, --user=USER'):
        assert word in out
    assert "'/var/run/qemu-pr-helper.sock'" in out or "'/run/qemu-pr-helper.sock'" in out
    assert ours('--help') == (code, out, err)
    assert ours('-h', '--bogus', '-V')[0] == 0  # the first one wins


def test_help_names_every_option(ours):
    """What the help shows is taken, what is taken is shown."""
    text = ours('--help')[1]
    shown = set(re.findall(r'--([a-z-]+)', text))
    for name in shown - {'help', 'version'}:
        code, _, err = ours(f'--{name}=x', '--bogus')
        assert code == 1 and f"unrecognized option '--{name}'" not in err, err
    assert {'daemon', 'quiet', 'verbose', 'pidfile', 'socket', 'trace', 'user', 'group'} <= shown | {
        'quiet',
        'verbose',
    }


def test_version(ours):
    code, out, err = ours('-V')
    assert (code, err) == (0, '')
    assert re.match(r'\S*qemu-pr-helper \d+\.\d+\.\d+|PROGRAM \d+\.\d+\.\d+', out), out
    assert ours('--version') == (code, out, err)


@pytest.mark.better
def test_version_under_the_own_name(helpers, tmp):
    binary = os.path.realpath(helpers().binary)
    if os.path.basename(binary) != 'granary-pr-helper':
        pytest.skip('not the program of this project')
    text = run(binary, '--version').stdout.decode()
    assert re.match(r'granary-pr-helper \d+\.\d+', text), text
    done = run(binary, '-k', 'relative', ok=(1,))
    assert done.stderr == b'granary-pr-helper: socket path must be absolute\n'
    assert '/run/granary-pr-helper.sock' in run(binary, '--help').stdout.decode()


def test_positional_arguments_are_ignored(helper):
    assert helper('some', 'words').serves()
    assert helper('--', '-x', '--bogus').serves()


def test_abbreviations(helpers, tmp):
    one = helpers()
    one.spawn(f'--socket={one.path}', '--verb', '--qui', f'--pid={tmp}/pid')
    one.wait_ready()
    assert one.serves()


def test_last_option_wins(helpers, tmp):
    one = helpers()
    one.spawn('-k', tmp / 'x.sock', '-k', one.path).wait_ready()
    assert not (tmp / 'x.sock').exists()


@pytest.mark.better
def test_path_without_room_for_its_end(ours):
    """108 bytes: the reference takes it although it says less."""
    code, _, err = ours('-k', '/tmp/' + 'x' * 103)
    assert code == 1
    assert 'is too long\nPath must be less than 108 bytes\n' in err, err


@pytest.mark.better
def test_verbose_reports_every_command(helper, tmp):
    served = helper('-v')
    (tmp / 'file').write_bytes(b'')
    assert served.serves()
    served.stop()
    lines = served.stderr().splitlines()
    assert any(str(os.getpid()) in line for line in lines), lines


def test_quiet_and_verbose_are_taken_together(helper):
    assert helper('-q', '-v', '-v').serves()


def test_trace_help(ours):
    code, out, err = ours('-T', 'help')
    assert (code, err) == (0, '')
    assert len(out.splitlines()) > 3


@pytest.mark.better
def test_trace_of_requests(helper, tmp):
    served = helper('-T', f'enable=*,file={tmp}/trace')
    assert served.serves()
    served.stop()
    assert (tmp / 'trace').read_text().count('\n') >= 1
