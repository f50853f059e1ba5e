# SPDX-License-Identifier: Apache-2.0
"""--trace: the list, patterns, files, and lines that come out."""

import subprocess

import pytest

from lib.daemon import BINARY
from lib.qmp import DEADLINE


def trace_names():
    done = subprocess.run(
        [BINARY, '--trace', 'help'], capture_output=True, timeout=DEADLINE, check=True
    )
    return done.stdout.decode().split()


def test_help_lists_names():
    names = trace_names()
    assert len(names) > 10
    assert names == [name for name in names if name.replace('_', '').isalnum()]


@pytest.mark.sanitize
def test_all_events_go_to_stderr(daemon):
    served = daemon(
        '--trace', '*', '--blockdev', 'null-co,node-name=n', '--export', 'nbd,id=e,node-name=n', nbd=True
    )
    served.cmd('query-block')
    served.stop()
    assert any(line.split(' ')[0] in trace_names() for line in served.stderr().splitlines())


def test_file_receives_the_lines(daemon, tmp):
    served = daemon('--trace', f'enable=*,file={tmp}/log')
    served.cmd('query-block')
    served.stop()
    names = trace_names()
    lines = (tmp / 'log').read_text().splitlines()
    assert any(line.split(' ')[0] in names for line in lines)
    assert len(lines) > len(served.stderr().splitlines())  # the reference begins on stderr


def test_events_file(daemon, tmp):
    name = trace_names()[0]
    (tmp / 'events').write_text(f'# comment\n\n*\n-{name}\n')
    served = daemon('--trace', f'events={tmp}/events')
    served.stop()
    assert not any(line.split(' ')[0] == name for line in served.stderr().splitlines())


def test_unknown_event_is_a_warning(daemon):
    served = daemon('--trace', 'no_such_event')
    assert (
        served.stderr()
        == "qemu-storage-daemon: --trace no_such_event: warning: trace event 'no_such_event' does not exist\n"
    )
    served.stop()
