# SPDX-License-Identifier: Apache-2.0
"""Reservations on real SCSI and NVMe targets. Each test boots a guest and runs a scenario of tests/guest."""

import pathlib

import pytest

from lib import peers, prhelper
from lib.daemon import BINARY
from lib.guest import Guest, run_or_skip
from lib.tools import TOP, need

pytestmark = pytest.mark.guest

BUILD = pathlib.Path(BINARY).absolute().parents[1]
HELPER = (prhelper.BINARY, '/usr/bin/pr-helper')


def in_guest(script, args=(), timeout=300, programs=(), **options):
    run_or_skip(Guest(programs=[HELPER, *programs], **options), script, args, timeout).verify()


def test_every_action():
    in_guest('actions.py', level='lio')


def test_older_kernel():
    in_guest('actions.py', level='lio', kernel='6.1')


def test_many_clients_privileges_and_wedged_disks():
    in_guest('clients.py', level='lio', settings={'LAB_LUNS': 4, 'LAB_SIZE': 16})


def test_preempt_and_abort():
    in_guest('abort.py', level='iscsi')


@pytest.mark.parametrize('newer', [False, True], ids=['this-release', 'newer-tools'])
def test_multipath(newer):
    settings = {'LAB_LUNS': 2, 'LAB_SIZE': 16, 'LAB_NEXUSES': 3}
    in_guest('multipath.py', level='mpath', newer=newer, settings=settings, timeout=500)


def test_nvme():
    in_guest('nvme.py', kernel='7')


@pytest.mark.parametrize('kernel', ['6.12', '7'])
def test_manager_without_helper(kernel):
    files = [(TOP / 'tests/lib/qmp.py', '/lab/lib/qmp.py')]
    granaryd = BUILD / 'src/programs/granaryd'
    in_guest(
        'kernel_manager.py',
        level='lio',
        kernel=kernel,
        programs=[(granaryd, '/usr/bin/granaryd')],
        files=files,
    )


def test_command():
    in_guest('tool.py', level='lio', programs=[(BUILD / 'src/pr-tool/granary-pr', '/usr/bin/granary-pr')])


@pytest.mark.parametrize(
    'level, options', [('lio', ()), ('iscsi', ('--aborts', '--case=preempt'))], ids=['all', 'aborts']
)
def test_same_answers_as_the_reference(level, options):
    need('qemu-pr-helper')
    references = {f'reference{n}': program for n, program in enumerate(peers.pr_helpers(), start=1)}
    programs = [(program, f'/opt/{name}/pr-helper') for name, program in references.items()]
    tests = TOP / 'tests'
    files = [
        (tests / 'prdiff.py', '/lab/prdiff.py'),
        (tests / 'differential/pr_cases.py', '/lab/differential/pr_cases.py'),
    ]
    names = [f'{name}:/opt/{name}/pr-helper' for name in references]
    in_guest('compare.py', [*names, *options], level=level, programs=programs, files=files, timeout=500)
