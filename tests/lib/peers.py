#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The programs to compare with: QEMU 7.2 as Debian 12 installs it, and QEMU 10 of its backports, unpacked below the cache.

Tests only look; `make check` runs this file first, which fetches. Where QEMU 10 cannot be had, 7.2 alone is compared with.
"""

import os
import pathlib
import shutil
import sys

if __name__ == '__main__':
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from lib import debian  # noqa: E402

PACKAGES = ('qemu-block-extra', 'qemu-system-common', 'qemu-system-x86', 'qemu-utils')


def qemu_10(fetch=False):
    """The folder with QEMU 10; None where it has not been fetched. With `fetch` debian.Unavailable says why not."""
    return debian.unpacked('qemu-10', 'bookworm-backports', PACKAGES, fetch)


def storage_daemon():
    """(program, folder of its modules) to compare granaryd with: GRANARY_REFERENCE, QEMU 10, or 7.2; (None, '') without."""
    if 'GRANARY_REFERENCE' in os.environ:
        return os.environ['GRANARY_REFERENCE'] or None, os.environ.get('GRANARY_REFERENCE_MODULES', '')
    root = qemu_10()
    if root:
        modules = next(root.glob('usr/lib/*/qemu'), '')
        return str(root / 'usr/bin/qemu-storage-daemon'), str(modules)
    return shutil.which('qemu-storage-daemon'), ''


def system_emulator():
    """(qemu-system-x86_64, folder of its modules) of QEMU 10, or None where it has not been fetched."""
    root = qemu_10()
    if root is None:
        return None
    return str(root / 'usr/bin/qemu-system-x86_64'), str(next(root.glob('usr/lib/*/qemu'), ''))


def pr_helpers():
    """The reservation helpers to compare with: GRANARY_PR_REFERENCES (separated by colons), or 7.2 and 10."""
    if 'GRANARY_PR_REFERENCES' in os.environ:
        return [path for path in os.environ['GRANARY_PR_REFERENCES'].split(':') if path]
    found = [shutil.which('qemu-pr-helper')]
    root = qemu_10()
    if root:
        found.append(str(root / 'usr/bin/qemu-pr-helper'))
    return [path for path in found if path]


def main():
    try:
        qemu_10(fetch=True)
    except debian.Unavailable as error:
        print(f'Comparing with the installed QEMU only: {error}')


if __name__ == '__main__':
    main()
