# SPDX-License-Identifier: Apache-2.0
"""`make demo-pr`: the whole story without a terminal, and the shell that follows it on one."""

import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from lib.daemon import BINARY
from lib.debian import Unavailable, unpacked_kernel
from lib.tools import TOP, need

pytestmark = [pytest.mark.better, pytest.mark.guest]

BUILD = pathlib.Path(BINARY).absolute().parents[1]
DEMO = ['/usr/bin/python3', TOP / 'tools' / 'demo-pr.py', BUILD]
BOOT_DEADLINE = 400
PROMPT = rb'\nalice\$ (\x1b\[6n)?$'  # the shell asks where the cursor is


@pytest.fixture(autouse=True)
def guest_can_be_had():
    need('qemu-system-x86_64')
    try:
        unpacked_kernel('6.12')
    except Unavailable as why:
        pytest.skip(f'no guest: {why}')


def test_without_a_terminal():
    """It tells the story to its end and leaves."""
    done = subprocess.run(
        DEMO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BOOT_DEADLINE,
    )
    assert done.returncode == 0, done.stdout
    story = [
        'Operation not permitted', 'registered 0xa', 'reserved  write-exclusive', 'error writing',
        'registered 0xb', 'reservation conflict', 'preempted 0xa', 'error writing', 'released',
        'not reserved', 'reserve device=sda key=0xa', 'What next?',
    ]  # fmt: skip
    at = 0
    for word in story:
        found = done.stdout.find(word, at)
        assert found >= 0, f'{word!r} is missing behind character {at}:\n{done.stdout}'
        at = found + len(word)
    assert '\r' not in done.stdout


class Terminal:
    """The demo on a terminal."""

    def __init__(self):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(DEMO, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.text = b''

    def until(self, pattern, deadline=60):
        """What comes until the pattern matches."""
        end = time.monotonic() + deadline
        while not re.search(pattern, self.text):
            left = end - time.monotonic()
            ready = left > 0 and select.select([self.master], [], [], left)[0]
            try:
                more = os.read(self.master, 65536) if ready else b''
            except OSError:  # the other side has closed
                more = b''
            assert more, f'no {pattern}, and nothing more:\n{self.text.decode(errors="replace")}'
            self.text += more
        text, self.text = self.text, b''
        return text

    def type(self, keys):
        os.write(self.master, keys)

    def command(self, line):
        self.type(line.encode() + b'\r')
        return self.until(PROMPT).decode()

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal():
    one = Terminal()
    yield one
    one.end()


def test_on_a_terminal(terminal):
    """The story ends in a shell of an ordinary user, who can go on reserving."""
    assert b'granary-pr --help' in terminal.until(PROMPT, BOOT_DEADLINE)
    assert '1000' in terminal.command('id -u')
    assert 'registered 0x1' in terminal.command('granary-pr register --new-key 0x1 /dev/host-a')
    assert '"keys":["0x1"]' in terminal.command('granary-pr --json keys /dev/host-b').replace(' ', '')
    terminal.type(b'echo run""ning; sleep 1000\r')
    terminal.until(b'running')
    terminal.type(b'\x03')
    terminal.until(PROMPT)
    terminal.type(b'exit\r')
    terminal.until(b'What next')
    assert terminal.process.wait(60) == 0


def test_leaving_at_once(terminal):
    terminal.until(b'granary-pr-helper --socket-mode', BOOT_DEADLINE)
    terminal.type(b'\x1d')
    terminal.until(b'What next')
    assert terminal.process.wait(60) == 0
