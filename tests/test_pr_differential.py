# SPDX-License-Identifier: Apache-2.0
"""Granary's reservation helper and the reference answer the same to good, odd and bad input.

As far as it needs no SCSI device; the rest of the cases run in the guest (prdiff.py).
"""

import shutil
import subprocess

import pytest

from differential.pr_cases import PR_ALLOWED, PR_CASES
from lib import peers, prhelper
from lib.tools import need_root
from prdiff import Arena, Unavailable


REFERENCES = peers.pr_helpers()


@pytest.fixture(scope='module')
def loop(tmp_path_factory):
    """A loop device over a file, or None where none can be made."""
    if not shutil.which('losetup'):
        yield None
        return
    backing = tmp_path_factory.mktemp('loop') / 'backing'
    backing.write_bytes(bytes(1 << 20))
    made = subprocess.run(
        ['losetup', '--find', '--show', backing], capture_output=True, text=True, check=False
    )
    path = made.stdout.strip() if made.returncode == 0 else None
    yield path
    if path:
        subprocess.run(['losetup', '--detach', path], check=True)


@pytest.fixture(
    scope='module', params=REFERENCES or [None], ids=lambda path: str(path).strip('/').replace('/', '-')
)
def arena(request, tmp_path_factory, loop):
    need_root('a reservation helper starts with privileges')
    if not prhelper.may_run():
        pytest.skip('a reservation helper needs CAP_SYS_RAWIO, which is not to be had here')
    if request.param is None:
        pytest.skip('missing package qemu-system-common (program qemu-pr-helper)')
    directory = tmp_path_factory.mktemp('pr')
    one = Arena(directory, request.param, prhelper.BINARY, loop=loop)
    yield one
    one.close()


def test_enough_cases():
    names = [case.name for case in PR_CASES]
    assert len(names) == len(set(names)), 'two cases share a name'
    here = sum(not case.needs_lun() for case in PR_CASES)
    print(f'{len(names)} cases, {here} of them without a LUN')
    assert len(names) >= 250 and here >= 130
    for entry in PR_ALLOWED:
        assert len(entry.reason) > 40, f'{entry.cases}: an allowed difference needs its reason'
        assert any(entry.concerns(case) for case in PR_CASES), f'{entry.cases} allows for nothing'


@pytest.mark.better
@pytest.mark.parametrize(
    'case', [case for case in PR_CASES if not case.needs_lun()], ids=lambda case: case.name
)
def test_same_answers(case, arena):
    try:
        verdict, text = arena.compare(case)
    except Unavailable as error:
        pytest.skip(str(error))
    if verdict == 'differs':
        pytest.fail(text, pytrace=False)
