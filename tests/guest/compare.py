#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The differential test (prdiff.py) on a real LUN: compare.py NAME:REFERENCE... [OPTION...]"""

import subprocess
import sys

from lab import check, lab, main, modprobe, run
from pr import HELPER

LUN = lab.luns[0]
OPTIONS = [word for word in sys.argv[1:] if word.startswith('--')]
references = [word.split(':') for word in sys.argv[1:] if not word.startswith('--')]
modprobe('loop')
with open('/run/loop.img', 'wb') as file:
    file.truncate(1 << 20)
run('losetup', '/dev/loop0', '/run/loop.img')


def compare(program):
    command = [
        'python3',
        '-S',
        '/lab/prdiff.py',
        '--reference',
        program,
        '--ours',
        HELPER,
        '--device',
        LUN.x.disk,
    ]
    command += ['--other', LUN.y.disk, '--loop', '/dev/loop0', '--only-differences', *OPTIONS]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False
    )
    print(done.stdout)
    differing = [line for line in done.stdout.splitlines() if line.startswith('differs')]
    assert done.returncode == 0, ', '.join(differing) or done.stdout[-300:]
    counts = dict(
        reversed(word.split()) for word in done.stdout.splitlines()[-1].partition('(')[0].strip().split(', ')
    )
    assert int(counts['same']) + int(counts['allowed']) >= (
        80 if '--case' not in ' '.join(OPTIONS) else 1
    ), counts


for name, program in references:

    def one(program=program):
        compare(program)

    one.__name__ = f'same_as_{name}'
    check(deadline=300)(one)
del sys.argv[1:]
main()
