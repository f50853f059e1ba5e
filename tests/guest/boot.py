#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Boots a guest of the lab and runs a script in it: tests/guest/boot.py --level mpath SCRIPT [ARGUMENT...]"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from lib.debian import Unavailable  # noqa: E402
from lib.guest import LEVELS, Guest, GuestFailed  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--level', default='lio', choices=LEVELS)
    parser.add_argument('--kernel', default='6.12', choices=('6.1', '6.12', '7'))
    parser.add_argument('--newer', action='store_true', help="Debian sid's multipath-tools and C library")
    parser.add_argument(
        '--program', action='append', default=[], metavar='HOST[:GUEST]', help='copied with its libraries'
    )
    parser.add_argument('--file', action='append', default=[], metavar='HOST:GUEST')
    parser.add_argument(
        '--set', action='append', default=[], metavar='LAB_X=VALUE', help='a setting of the lab'
    )
    parser.add_argument('--memory', type=int, default=512, metavar='MiB')
    parser.add_argument('--cpus', type=int, default=1)
    parser.add_argument('--disk-tools', action='store_true', help='with fio, mke2fs, sfdisk, vdpa and the like')
    parser.add_argument('--timeout', type=int, default=300, metavar='SECONDS')
    parser.add_argument('--console', action='store_true', help='print what the kernel said, too')
    parser.add_argument('script', type=pathlib.Path)
    parser.add_argument('arguments', nargs='*')
    options = parser.parse_args()
    guest = Guest(
        options.level,
        options.kernel,
        options.program,
        options.file,
        options.memory,
        options.cpus,
        newer=options.newer,
        disk_tools=options.disk_tools,
        settings=dict(pair.split('=', 1) for pair in options.set),
    )
    try:
        result = guest.run(options.script.absolute(), options.arguments, options.timeout)
    except (Unavailable, GuestFailed) as why:
        sys.exit(str(why))
    print(result.output, end='')
    if options.console:
        print(result.console, end='')
    print(f'{result.seconds:.1f} s', file=sys.stderr)
    return result.status


if __name__ == '__main__':
    sys.exit(main())
