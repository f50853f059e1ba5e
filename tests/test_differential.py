# SPDX-License-Identifier: Apache-2.0
"""Granary and the installed reference give the same answers to several hundred good and bad inputs."""

import importlib
import pkgutil
import re
import shutil

import pytest

import differential
from differential.allowed import NEEDS_10
from lib.daemon import BINARY
from lib.differential import RUNNERS, Arena, Peer, differences, exchanges, reference
from lib.tools import need

MODULES = [
    importlib.import_module(f'differential.{m.name}') for m in pkgutil.iter_modules(differential.__path__)
]
CASES = [case for module in MODULES for case in getattr(module, 'CASES', [])]
ALLOWED = [entry for module in MODULES for entry in getattr(module, 'ALLOWED', [])]


@pytest.fixture(scope='session')
def arena(tmp_path_factory):
    need('qemu-img')
    return Arena(tmp_path_factory.mktemp('d'))


@pytest.fixture(scope='session')
def peer():
    return reference()


def test_enough_cases():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)), 'two cases share a name'
    total = sum(exchanges(case) for case in CASES)
    print(f'{total} exchanges in {len(CASES)} cases')
    assert total >= 300
    for entry in ALLOWED:
        assert len(entry.reason) > 20, f'{entry.case}: an allowed difference needs its reason'
        assert any(re.fullmatch(entry.case, name) for name in names), f'{entry.case} allows for nothing'


@pytest.mark.parametrize('case', CASES, ids=[case.name for case in CASES])
def test_same_answers(case, arena, peer):
    if case.v10 or re.fullmatch(NEEDS_10, case.name):
        peer.need_10()
    runner = RUNNERS[type(case)]
    directories = arena.fresh(), arena.fresh()
    ours = runner(Peer(BINARY), directories[0], case)
    theirs = runner(peer, directories[1], case)
    for entry in ALLOWED:
        if re.fullmatch(entry.case, case.name):
            ours, theirs = entry.check(ours, theirs)
    found = differences(ours, theirs)
    if found:
        pytest.fail('\n'.join(found), pytrace=False)
    for directory in directories:  # kept after a failure
        shutil.rmtree(directory)
