# SPDX-License-Identifier: Apache-2.0
"""Boots a small guest with real SCSI targets and runs a scenario in it.

    guest = Guest(level='lio', programs=[('build/src/pr-helper/granary-pr-helper', '/usr/bin/pr-helper')])
    guest.run('actions.py', timeout=120).verify()

The guest is a Debian kernel in QEMU without KVM, with an initramfs: busybox, sg3-utils, multipath-tools,
udev, open-iscsi's iscsistart and Python. All of it is unpacked below the cache folder, nothing is installed.
tests/guest/lab.py is the side that runs in the guest; it prints `ok NAME`, `not ok NAME: why` or
`skip NAME: why` for each check of a scenario.

What cannot be had raises Unavailable; test fixtures turn that into a skip.
"""

import dataclasses
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from lib.debian import Unavailable, locked, unpacked, unpacked_kernel
from lib.initramfs import MERGED, Initramfs, Modules, add_python
from lib.tools import TOP, need

HERE = TOP / 'tests' / 'guest'
LEVELS = ('none', 'lio', 'mpath', 'iscsi', 'iscsimpath')

USERLAND = """
    busybox-static sg3-utils libsgutils2-1.46-2 multipath-tools liburcu8 libaio1 libjson-c5
    libdevmapper1.02.1 libedit2 libbsd0 libmd0 dmsetup udev libudev1 libkmod2 open-iscsi libopeniscsiusr
    libisns0 libtinfo6
""".split()
PROGRAMS = """
    bin/sg_persist bin/sg_inq bin/sg_turs bin/sg_vpd bin/sg_raw bin/sg_rtpg bin/sg_stpg bin/sg_reset
    sbin/multipath sbin/multipathd sbin/mpathpersist lib/libmpathpersist.so.0 sbin/dmsetup bin/udevadm
    lib/udev/scsi_id sbin/iscsistart
""".split()
# Of udev's rules only what multipathd and dmsetup wait for: all of them would take seconds for each disk.
RULES = ('50-udev-default', '55-dm', '95-dm-notify')
LAB_RULES = """
KERNEL=="sd*", ENV{DEVTYPE}=="disk", IMPORT{program}="scsi_id --export --whitelisted -d $devnode"
KERNEL=="dm-*", ENV{DM_NAME}=="?*", SYMLINK+="mapper/$env{DM_NAME}"
"""
# Newer multipath-tools want a newer C library, which then everything in the guest uses.
NEWER = """
    multipath-tools libmpathpersist0 libmpathcmd0 libmultipath0 libmpathvalid0 libdevmapper1.02.1 libudev1
    libsystemd0 libaio1t64 libedit2 libjson-c5 libblkid1 libcap2 liburcu8t64 libtinfo6 libbsd0 libmd0 libc6
    libgcc-s1 libselinux1 libpcre2-8-0 libmount1 libcap-ng0
""".split()
MODULES = """
    virtio_pci virtio_blk virtio_scsi virtio_rng virtio_net vhost_vsock configfs scsi_mod sd_mod sg sr_mod
    bsg dm-mod dm-multipath dm-round-robin dm-service-time dm-queue-length dm-snapshot scsi_dh_alua
    target_core_mod target_core_file target_core_iblock target_core_pscsi target_core_user tcm_loop
    vhost_scsi iscsi_target_mod iscsi_tcp scsi_debug nvme nvme-core nvme-fabrics nvme-tcp nvmet nvmet-tcp
    nvme-loop loop null_blk nbd fuse ext4 crct10dif_generic crc32c_generic crc32c_intel libcrc32c
    sha256_generic vduse virtio_vdpa vhost_vdpa
""".split()
FOLDERS = 'dev etc lab mnt proc root run sys tmp usr/bin usr/lib64 usr/sbin var/lib var/tmp'.split()
ACCOUNTS = {
    '/etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n',
    '/etc/group': 'root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n',
    '/etc/nsswitch.conf': 'passwd: files\ngroup: files\n',
}


class GuestFailed(AssertionError):
    """The guest did not boot or did not come to an end in time."""


@dataclasses.dataclass
class Check:
    name: str
    passed: bool
    why: str = ''
    skipped: bool = False


@dataclasses.dataclass
class Result:
    """What a run gave: `output` and exit `status` of the script, `console` of the kernel, and so on."""

    output: str
    status: int
    console: str
    seconds: float
    checks: list = dataclasses.field(default_factory=list)

    def check(self, name):
        return next(check for check in self.checks if check.name == name)

    def verify(self, kernel_complaints=False):
        """Fails unless the script ended well, had checks and all passed; skips when one was skipped."""
        failed = [
            f'{check.name}: {check.why}' for check in self.checks if not check.passed and not check.skipped
        ]
        complaints = re.findall(
            r'^.*(?:BUG:|Oops|Call Trace|Kernel panic|blocked for more).*$', self.console, re.MULTILINE
        )
        if self.status or failed or not self.checks or (complaints and not kernel_complaints):
            pytest.fail(
                f'{len(failed)} of {len(self.checks)} checks in the guest failed (status {self.status}):\n  '
                + '\n  '.join(failed + complaints)
                + f'\n--- output of the guest\n{self.output}\n--- end of its console\n{self.console[-3000:]}',
                pytrace=False,
            )
        skipped = [f'{check.name}: {check.why}' for check in self.checks if check.skipped]
        if skipped:
            pytest.skip('; '.join(skipped))


def parse_checks(output):
    checks = []
    for line in output.splitlines():
        found = re.match(r'(ok|not ok|skip) ([\w.-]+)(?:: (.*))?$', line)
        if found:
            kind, name, why = found.groups()
            checks.append(Check(name, kind == 'ok', why or '', kind == 'skip'))
    return checks


def _pairs(entries):
    for entry in entries:
        if isinstance(entry, tuple):
            source, target = entry
        else:
            source, _, target = str(entry).partition(':')
        if '/' not in str(source):
            source = shutil.which(str(source)) or source
        source = pathlib.Path(source).absolute()
        yield source, target or str(source)


def _kernel_image(root):
    """(image, release, module tree) of an unpacked kernel, in the packages' older and newer layout."""
    trees = sorted((root / 'usr/lib/modules').iterdir())
    release = trees[0].name
    for image in (root / 'boot' / f'vmlinuz-{release}', trees[0] / 'vmlinuz'):
        if image.exists():
            return image, release, trees[0]
    raise Unavailable(f'no kernel image in {root}')


def _fill_base(archive, kernel):
    root = unpacked('userland', 'bookworm', USERLAND)
    _, release, tree = _kernel_image(kernel)
    for name in FOLDERS:
        archive.folder(name)
    for name in MERGED:
        archive.link(name, f'usr/{name}')
    archive.link('var/run', '../run')
    for path, text in ACCOUNTS.items():
        archive.text(path, text)
    for program in PROGRAMS:
        archive.program(root / 'usr' / program, root=root)
    for plugin in sorted((root / 'usr/lib/multipath').glob('*.so')):  # found with dlopen
        archive.program(plugin, root=root)
    archive.program('/lib/x86_64-linux-gnu/libgcc_s.so.1')
    archive.program('/usr/bin/setpriv')
    archive.link('/usr/lib/systemd/systemd-udevd', '/usr/bin/udevadm')
    for rule in RULES:
        archive.file(root / 'usr/lib/udev/rules.d' / f'{rule}.rules', f'/usr/lib/udev/rules.d/{rule}.rules')
    archive.text('/usr/lib/udev/rules.d/60-lab.rules', LAB_RULES)
    add_python(archive)
    busybox = root / 'usr/bin/busybox'
    archive.file(busybox, '/usr/bin/busybox')
    for name in subprocess.run(
        [busybox, '--list'], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split():
        if not archive.has(f'/usr/bin/{name}') and not archive.has(f'/usr/sbin/{name}'):
            archive.link(f'/usr/bin/{name}', 'busybox')
    archive.link('/usr/sbin/modprobe', '/usr/bin/busybox')  # where the kernel itself looks for it
    modules = Modules(tree)
    for name in MODULES:
        modules.add(name)
    modules.write_to(archive, release)


def _base(kernel, newer):
    """The part of the initramfs that all guests with that kernel share; made once for each content."""
    sources = [pathlib.Path(__file__), pathlib.Path(__file__).with_name('initramfs.py')]
    key = hashlib.sha256(b''.join(source.read_bytes() for source in sources))
    interpreter = os.path.realpath(sys.executable)
    key.update(
        repr((str(kernel), newer, interpreter, os.stat(interpreter).st_mtime_ns, sys.version)).encode()
    )
    name = f'guest-{kernel.name}{"-newer" if newer else ""}-{key.hexdigest()[:12]}.cpio'
    with locked(f'guest-{kernel.name}') as cache:
        path = cache / name
        if not path.exists():
            for old in cache.glob(f'guest-{kernel.name}-*.cpio'):
                if time.time() - old.stat().st_mtime > 7 * 24 * 3600:
                    old.unlink()
                    old.with_suffix('.list').unlink(missing_ok=True)
            archive = Initramfs()
            if newer:
                _fill_newer(archive)
            _fill_base(archive, kernel)
            unfinished = path.with_suffix('.new')
            with open(unfinished, 'wb') as output:
                archive.write(output)
            path.with_suffix('.list').write_text('\n'.join(archive.paths()))
            unfinished.rename(path)
        os.utime(path)
        return path, path.with_suffix('.list').read_text().split('\n')


def _fill_newer(archive):
    root = unpacked('multipath', 'sid', NEWER)
    for program in ('sbin/multipath', 'sbin/multipathd', 'sbin/mpathpersist', 'lib/libmpathpersist.so.0'):
        archive.program(root / 'usr' / program, root=root)
    for plugin in sorted((root / 'usr/lib/multipath').glob('*.so')):
        archive.program(plugin, root=root)
    for name in ('libgcc_s.so.1', 'libm.so.6', 'libcap-ng.so.0'):
        archive.program(root / 'usr/lib/x86_64-linux-gnu' / name, root=root)
    archive.link('/usr/lib64/ld-linux-x86-64.so.2', '../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2')


class Guest:
    """A guest to be.

    level      what is prepared before the script: 'none'; 'lio' a LUN with two nexuses (tcm_loop); 'mpath'
               the same with multipathd and a map; 'iscsi' and 'iscsimpath' over two iSCSI sessions
    kernel     '6.1', '6.12' or '7'
    programs   paths of the host, or 'host:guest' or (host, guest): copied with their shared libraries
    files      (host, guest) files or folders, copied as they are
    newer      Debian sid's multipath-tools and C library instead of bookworm's
    settings   of the lab: LAB_SIZE (MiB of a LUN), LAB_LUNS (how many), LAB_NEXUSES (3: a third that no map
               has), and for multipath.conf LAB_RKEY (reservation_key), LAB_POLICY, LAB_MULTIPATH (more lines)
    """

    def __init__(
        self,
        level='none',
        kernel='6.12',
        programs=(),
        files=(),
        memory=512,
        cpus=1,
        qemu_args=(),
        append='',
        newer=False,
        settings=None,
    ):
        assert level in LEVELS
        self._level, self._kernel, self._newer = level, kernel, newer
        self._programs, self._files = list(_pairs(programs)), list(_pairs(files))
        self._memory, self._cpus, self._qemu_args, self._append = memory, cpus, list(qemu_args), append
        self._settings = dict(settings or {})

    def _overlay(self, script, args, below):
        archive = Initramfs(below)
        archive.file(HERE / 'init', '/init')
        for module in ('lab.py', 'pr.py', 'lib/program.py', 'lib/prwire.py', 'lib/prhelper.py', 'lib/__init__.py'):
            archive.file((HERE.parent if '/' in module else HERE) / module, f'/lab/{module}')
        if isinstance(script, pathlib.Path) or '\n' not in script:
            script = (HERE / script).read_text()
        archive.text('/lab/script', script, executable=True)
        archive.text('/lab/args', ''.join(f'{arg}\0' for arg in args))
        archive.text('/lab/level', self._level)
        archive.text('/lab/settings', ''.join(f'{k}={v}\0' for k, v in self._settings.items()))
        for source, target in self._programs:
            archive.program(source, target)
        for source, target in self._files:
            archive.file(source, target)
        return archive

    def run(self, script, args=(), timeout=120):
        """Boots, runs a script (path in tests/guest or elsewhere, or its text) and returns the Result."""
        if platform.machine() != 'x86_64':
            raise Unavailable(f'guests are x86-64 machines, this is {platform.machine()}')
        kernel = unpacked_kernel(self._kernel)
        base, below = _base(kernel, self._newer)
        with tempfile.TemporaryDirectory(prefix='gr-guest-') as folder:
            folder = pathlib.Path(folder)
            with open(folder / 'initrd', 'wb') as output:
                with open(base, 'rb') as file:
                    shutil.copyfileobj(file, output, 1 << 20)
                overlay = folder / 'overlay'
                with open(overlay, 'wb') as file:
                    self._overlay(script, [str(arg) for arg in args], below).write(file)
                output.write(overlay.read_bytes())
            return self._boot(folder, _kernel_image(kernel)[0], timeout)

    def _boot(self, folder, image, timeout):
        accelerator = os.environ.get('GRANARY_GUEST_ACCEL', 'tcg')
        command = [
            'qemu-system-x86_64',
            '-M',
            'pc',
            '-accel',
            accelerator,
            '-cpu',
            'qemu64',
            '-smp',
            str(self._cpus),
        ]
        command += [
            '-m',
            str(self._memory),
            '-nodefaults',
            '-no-user-config',
            '-display',
            'none',
            '-no-reboot',
        ]
        command += ['-device', 'virtio-rng-pci', '-kernel', str(image), '-initrd', str(folder / 'initrd')]
        command += ['-serial', f'file:{folder}/console', '-serial', f'file:{folder}/output', '-append']
        command += [
            'console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init tsc=reliable random.trust_cpu=on '
            'mitigations=off nokaslr '
            f'{self._append}'.strip()
        ]
        command += self._qemu_args
        begin = time.monotonic()
        late = False
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
            said = done.stdout.decode(errors='replace')
        except FileNotFoundError as error:
            raise Unavailable('no program qemu-system-x86_64 (package qemu-system-x86)') from error
        except subprocess.TimeoutExpired as expired:
            late, said = True, (expired.output or b'').decode(errors='replace')
        console, output = (
            (folder / name).read_bytes().decode(errors='replace').replace('\r', '')
            if (folder / name).exists()
            else ''
            for name in ('console', 'output')
        )
        seconds = time.monotonic() - begin
        end = re.search(r'^guest-exit (\d+)$', output, re.MULTILINE)
        if end is None:
            reason = f'did not end in {timeout} s' if late else f'ended without a word: {said.strip()}'
            raise GuestFailed(
                f'the guest {reason}\n--- its output\n{output}\n--- end of its console\n{console[-4000:]}'
            )
        output = output[: end.start()]
        return Result(output, int(end.group(1)), console, seconds, parse_checks(output))


def run_or_skip(guest, script, args=(), timeout=120):
    """guest.run() which skips the test, saying why, when a kernel or another part cannot be had."""
    need('qemu-system-x86_64')
    try:
        return guest.run(script, args, timeout)
    except Unavailable as why:
        pytest.skip(f'no guest: {why}')
