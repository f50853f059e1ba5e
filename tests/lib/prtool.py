# SPDX-License-Identifier: Apache-2.0
"""Runs granary-pr, and finds what is built beside it.

GRANARY_PR names another program; the default lies in the build directory of the daemon under test.
"""

import json
import os
import pathlib
import subprocess

import pytest

from lib import daemon
from lib.program import SANITIZER
from lib.qmp import DEADLINE

BUILD = pathlib.Path(daemon.BINARY).absolute().parent.parent
BINARY = os.environ.get('GRANARY_PR', str(BUILD / 'src' / 'pr-tool' / 'granary-pr'))
HELPER = os.environ.get('GRANARY_PR_HELPER', str(BUILD / 'src' / 'pr-helper' / 'granary-pr-helper'))
LIBRARY = BUILD / 'src' / 'pr-tool' / 'libgranary-pr.so.0'
DONE, USAGE, UNREACHABLE, CONFLICT, REFUSED, TRY_AGAIN, UNKNOWN = range(7)


def need_build():
    """A skip where the daemon under test is not ours."""
    if not (BUILD / 'build.ninja').exists():
        pytest.skip(f'{BUILD} is not a build directory')


class Ended:
    """What a run has left behind."""

    def __init__(self, done):
        self.code = done.returncode
        self.out, self.err = done.stdout.decode(), done.stderr.decode()

    def json(self):
        assert self.out.count('\n') == 1, self.out
        return json.loads(self.out)


def granary_pr(*args, socket=None, environment=None, code=DONE, binary=BINARY):
    """Runs it and checks its exit status."""
    front = ['--socket', str(socket)] if socket else []
    clean = {name: value for name, value in os.environ.items() if name != 'GRANARY_PR_SOCKET'}
    done = Ended(
        subprocess.run(
            [binary, *front, *map(str, args)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=dict(clean, **(environment or {})),
            timeout=DEADLINE,
            check=False,
        )
    )
    assert SANITIZER.search(done.err) is None, done.err
    assert done.code == code, f'{args}: exit {done.code}\n{done.out}{done.err}'
    return done
