# SPDX-License-Identifier: Apache-2.0
"""Debian packages, fetched and unpacked below the user's cache folder without installing them.

Each suite has an apt state of its own, so neither the machine's configuration nor its lists are touched, and
no privilege is needed. What is unpacked stays until somebody removes the folder.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import time

KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
FRESH_SECONDS = 3600
_failures = {}  # suite -> why its lists cannot be had
# Large parts of kernel packages that no guest of these tests loads.
UNWANTED = (
    './usr/share/doc', './usr/share/man', './usr/share/locale', './usr/share/bash-completion',
    *(f'*/kernel/{folder}' for folder in (
        'sound', 'drivers/gpu', 'drivers/media', 'drivers/net/ethernet', 'drivers/net/wireless',
        'drivers/staging', 'drivers/infiniband', 'drivers/usb', 'drivers/iio', 'drivers/hwmon',
    )),
)  # fmt: skip


class Unavailable(Exception):
    """Something that a guest needs cannot be had here; the text says what and why."""


def cache_folder():
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return pathlib.Path(os.environ.get('GRANARY_CACHE') or f'{base}/granary')


@contextlib.contextmanager
def locked(name):
    """One process at a time for what has this name in the cache folder."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f'{name}.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def this_release():
    for line in pathlib.Path('/etc/os-release').read_text().splitlines():
        name, _, value = line.partition('=')
        if name == 'VERSION_CODENAME':
            return value.strip('"')
    raise Unavailable('no VERSION_CODENAME in /etc/os-release: not a Debian release')


def _mirror():
    """The mirror that this machine uses already."""
    with contextlib.suppress(OSError):
        policy = subprocess.run(
            ['apt-cache', 'policy'], stdout=subprocess.PIPE, text=True, check=False
        ).stdout
        found = re.search(rf'(https?://\S+/debian) {this_release()}/main', policy)
        if found:
            return found.group(1)
    return 'http://deb.debian.org/debian'


class Suite:
    """The packages of a suite: 'bookworm', 'bookworm-backports', 'sid'. Use inside locked('apt-SUITE')."""

    def __init__(self, name):
        self.name = name
        self.folder = cache_folder() / f'apt-{name}'
        for part in ('lists/partial', 'archives/partial', 'packages'):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / 'sources.list').write_text(f'deb [signed-by={KEYRING}] {_mirror()} {name} main\n')
        user = subprocess.run(['id', '-un'], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
        (self.folder / 'apt.conf').write_text(
            f'Dir::Etc::SourceList "{self.folder}/sources.list";\n'
            'Dir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State::Lists "{self.folder}/lists";\n'
            f'Dir::Cache "{self.folder}";\n'
            'Dir::State::Status "/dev/null";\n'
            f'APT::Sandbox::User "{user}";\n'
            'Acquire::http::Timeout "20";\n'
            'Acquire::Retries "1";\n'
        )

    def _run(self, *command):
        try:
            done = subprocess.run(
                command,
                cwd=self.folder / 'packages',
                env=dict(os.environ, APT_CONFIG=str(self.folder / 'apt.conf'), LC_ALL='C'),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        except OSError as error:
            raise Unavailable(f'cannot run {command[0]}: {error.strerror}') from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith(('E:', 'W:'))] or [
                'no reason given'
            ]
            raise Unavailable(f'no packages of {self.name} to be had: {" ".join(command)}: {lines[-1]}')
        return done.stdout

    def update(self):
        """Fetches the lists of packages, where that was not done lately. A failure is not tried again."""
        if self.name in _failures:
            raise Unavailable(_failures[self.name])
        updated = self.folder / 'updated'
        if updated.exists() and time.time() - updated.stat().st_mtime < FRESH_SECONDS:
            return
        try:
            self._run('apt-get', '-q', 'update', '-o', 'APT::Update::Error-Mode=any')
        except Unavailable as why:
            _failures[self.name] = str(why)
            raise
        updated.touch()

    def dependencies(self, package):
        lines = self._run('apt-cache', 'depends', package).splitlines()
        return [line.split()[1] for line in lines if line.strip().startswith('Depends:')]

    def unpack(self, packages, destination):
        """Downloads packages and unpacks them into `destination`; the files of the packages are not kept."""
        for file in (self.folder / 'packages').glob('*.deb'):  # of a run that was interrupted
            file.unlink()
        self._run('apt-get', '-q', 'download', *packages)
        for file in sorted((self.folder / 'packages').glob('*.deb')):
            with subprocess.Popen(['dpkg-deb', '--fsys-tarfile', file], stdout=subprocess.PIPE) as archive:
                extract = ['tar', '-x', '--keep-directory-symlink', '--no-same-owner', '-C', destination]
                extract += [f'--exclude={pattern}' for pattern in UNWANTED]
                done = subprocess.run(
                    extract, stdin=archive.stdout, stderr=subprocess.PIPE, text=True, check=False
                )
            if done.returncode or archive.returncode:
                raise Unavailable(f'cannot unpack {file.name}: {done.stderr.strip()}')
            file.unlink()


def _merged_usr(root):
    """The layout in which /lib, /bin, ... are links into /usr, so that old and new packages fit together."""
    for name in ('bin', 'sbin', 'lib', 'lib64'):
        (root / 'usr' / name).mkdir(parents=True)
        (root / name).symlink_to(f'usr/{name}')


@functools.lru_cache(maxsize=None)
def _unpacked(name, suite, packages, fetch):
    key = hashlib.sha256(repr((suite, packages, UNWANTED)).encode()).hexdigest()[:12]
    with locked(f'apt-{suite}') as cache:
        root = cache / f'{name}-{key}'
        if root.exists():
            return root
        if not fetch:
            return None
        source = Suite(suite)
        source.update()
        unfinished = root.with_suffix('.new')
        shutil.rmtree(unfinished, ignore_errors=True)
        _merged_usr(unfinished)
        source.unpack(packages, unfinished)
        unfinished.rename(root)
        return root


def unpacked(name, suite, packages, fetch=True):
    """A folder with these packages of a suite unpacked. Without `fetch` None if it is not there."""
    return _unpacked(name, suite, tuple(packages), fetch)


def unpacked_kernel(version):
    """A folder with Debian's kernel: '6.1' and '6.12' from bookworm and its backports, '7' from sid."""
    suites = {'6.1': 'bookworm', '6.12': 'bookworm-backports', '7': 'sid'}
    if version not in suites:
        raise ValueError(f'no such kernel: {version} (one of {", ".join(suites)})')
    return _kernel(version, suites[version])


@functools.lru_cache(maxsize=None)
def _kernel(version, suite):
    with locked(f'apt-{suite}') as cache:
        root = cache / f'kernel-{version}'
        if root.exists():
            return root
        source = Suite(suite)
        source.update()
        image = next(p for p in source.dependencies('linux-image-amd64') if p.startswith('linux-image-'))
        if not image.startswith(f'linux-image-{version}.'):
            raise Unavailable(f'{suite} has {image} now, not a kernel {version}')
        # Newer packages are split and the one of that name is empty.
        parts = [p for p in source.dependencies(image) if p.startswith(('linux-binary-', 'linux-modules-'))]
        unfinished = root.with_suffix('.new')
        shutil.rmtree(unfinished, ignore_errors=True)
        _merged_usr(unfinished)
        source.unpack(parts or [image], unfinished)
        unfinished.rename(root)
        return root
