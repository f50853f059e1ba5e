#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Prints what a program answers to differential cases: show-case.py REGEX [PROGRAM] (default: the reference)."""

import importlib
import pathlib
import pkgutil
import re
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import differential  # noqa: E402
from lib.differential import RUNNERS, Arena, Peer, reference  # noqa: E402

peer = Peer(pathlib.Path(sys.argv[2]).absolute()) if len(sys.argv) > 2 else reference()
with tempfile.TemporaryDirectory() as directory:
    arena = Arena(directory)
    for module in pkgutil.iter_modules(differential.__path__):
        for case in getattr(importlib.import_module(f'differential.{module.name}'), 'CASES', []):
            if re.fullmatch(sys.argv[1], case.name):
                print(f'== {case.name}')
                for what, answer in RUNNERS[type(case)](peer, arena.fresh(), case):
                    print(f'{what}\n    {answer}')
