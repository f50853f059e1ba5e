# SPDX-License-Identifier: Apache-2.0
"""Boots a small guest with real SCSI targets and runs a scenario in it.

    guest = Guest(level='lio', programs=[('build/src/pr-helper/granary-pr-helper', '/usr/bin/pr-helper')])
    guest.run('actions.py', timeout=120).verify()

    with guest.start('vhost_disks.py') as machine:     # where the host acts in between
        machine.wait_for('resize')                     # the scenario has said lab.at('resize')
        machine.qmp.cmd('device_del', id='disk0')
        machine.finish(timeout=120).verify()

The guest is a Debian kernel in QEMU without KVM, with an initramfs: busybox, sg3-utils, multipath-tools,
udev, open-iscsi's iscsistart and Python. All of it is unpacked below the cache folder, nothing is installed.
tests/guest/lab.py is the side that runs in the guest; it prints `ok NAME`, `not ok NAME: why` or
`skip NAME: why` for each check of a scenario.

What cannot be had raises Unavailable; test fixtures turn that into a skip.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import platform
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from lib.debian import Unavailable, locked, unpacked, unpacked_kernel
from lib.initramfs import MERGED, Initramfs, Modules, add_python
from lib.qmp import Qmp, QmpClosed
from lib.tools import DEADLINE, PACKAGES, TOP, need

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
    sha256_generic vduse virtio_vdpa vhost_vdpa dm-crypt algif_skcipher xts essiv serpent_generic
    twofish_generic cast5_generic
""".split()
# What tests of disks use besides, of the host and of packages that are unpacked only.
DISK_PROGRAMS = 'fio mke2fs e2fsck blkdiscard fstrim'.split()
DISK_PACKAGES = 'fdisk libfdisk1 libsmartcols1 iproute2 libmnl0'.split()
UNPACKED_DISK_PROGRAMS = 'sbin/sfdisk sbin/vdpa'.split()
FOLDERS = 'dev etc lab mnt proc root run sys tmp usr/bin usr/lib64 usr/sbin var/lib var/tmp'.split()
ACCOUNTS = {
    '/etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n',
    '/etc/group': 'root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n',
    '/etc/nsswitch.conf': 'passwd: files\ngroup: files\n',
}


# Programs that are always at the same addresses are translated once.
KERNEL_OPTIONS = (
    'console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init tsc=reliable random.trust_cpu=on mitigations=off nokaslr '
    'norandmaps'
)
USUAL_BOOT = 20  # seconds until a level is ready on a quiet machine; as in tests/guest/lab.py
FIRMWARE = ('/usr/share/seabios', '/usr/share/qemu')  # an unpacked QEMU takes the installed one's


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


def _add_disk_tools(archive):
    for name in DISK_PROGRAMS:
        path = shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin:/sbin')
        if path is None:
            raise Unavailable(f'no program {name} (package {PACKAGES.get(name, "util-linux")})')
        archive.program(path, f'/usr/bin/{name}')
    root = unpacked('disk-tools', 'bookworm', DISK_PACKAGES)
    for program in UNPACKED_DISK_PROGRAMS:
        archive.program(root / 'usr' / program, f'/usr/{program}', root=root)


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
    disk_tools fio, mke2fs, sfdisk, vdpa and the like (DISK_PROGRAMS)
    qemu       (program, folder of its modules), for example peers.system_emulator(); None: the installed one
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
        disk_tools=False,
        qemu=None,
    ):
        assert level in LEVELS
        self._level, self._kernel, self._newer = level, kernel, newer
        self._programs, self._files = list(_pairs(programs)), list(_pairs(files))
        self._memory, self._cpus, self._qemu_args, self._append = memory, cpus, list(qemu_args), append
        self._settings = dict(settings or {})
        self._disk_tools, self._qemu = disk_tools, qemu

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
        if self._disk_tools:
            _add_disk_tools(archive)
        for source, target in self._programs:
            archive.program(source, target)
        for source, target in self._files:
            archive.file(source, target)
        return archive

    def start(self, script, args=()):
        """Boots a script (path in tests/guest or elsewhere, or its text); returns the Machine."""
        if platform.machine() != 'x86_64':
            raise Unavailable(f'guests are x86-64 machines, this is {platform.machine()}')
        kernel = unpacked_kernel(self._kernel)
        base, below = _base(kernel, self._newer)
        machine = Machine()
        try:
            with open(machine.folder / 'initrd', 'w+b') as output:
                with open(base, 'rb') as file:
                    shutil.copyfileobj(file, output, 1 << 20)
                with open(machine.folder / 'overlay', 'w+b') as overlay:
                    self._overlay(script, [str(arg) for arg in args], below).write(overlay)
                    overlay.seek(0)
                    shutil.copyfileobj(overlay, output, 1 << 20)
            machine.boot(self._command(_kernel_image(kernel)[0]), self._environment())
        except BaseException:
            machine.close()
            raise
        return machine

    def run(self, script, args=(), timeout=120):
        """Boots, runs a script and returns the Result."""
        with self.start(script, args) as machine:
            return machine.finish(timeout)

    def _command(self, image):
        command = [self._qemu[0] if self._qemu else 'qemu-system-x86_64']
        for folder in FIRMWARE if self._qemu else ():
            command += ['-L', folder]
        # Guests with several processors crash now and then in QEMU before 8.1 when the kernel changes its own code.
        accelerator = 'tcg' if self._cpus == 1 or self._qemu else 'tcg,thread=single'
        command += ['-M', 'pc', '-accel', os.environ.get('GRANARY_GUEST_ACCEL', accelerator), '-cpu', 'qemu64']
        command += ['-smp', str(self._cpus), '-m', str(self._memory), '-nodefaults', '-no-user-config']
        command += ['-display', 'none', '-no-reboot', '-device', 'virtio-rng-pci', '-kernel', str(image)]
        command += ['-append', f'{KERNEL_OPTIONS} {self._append}'.strip()]
        return command + self._qemu_args

    def _environment(self):
        return dict(os.environ, QEMU_MODULE_DIR=self._qemu[1]) if self._qemu else None


class Machine:
    """A guest that runs. `qmp` is the session with its QEMU. Leaving it (`with`) ends it, however far it has come."""

    def __init__(self):
        self._temporary = tempfile.TemporaryDirectory(prefix='gr-guest-')
        self.folder = pathlib.Path(self._temporary.name)
        self._process, self._serial, self.qmp = None, None, None
        self._output, self._begin = b'', time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind and not issubclass(kind, GuestFailed):
            print(self._failed('was not at its end'))
        self.close()

    def boot(self, command, environment):
        """Starts QEMU. The scenario's terminal and QMP are sockets that it inherits."""
        self._serial, serial = socket.socketpair()
        control, monitor = socket.socketpair()
        command += ['-initrd', f'{self.folder}/initrd', '-serial', f'file:{self.folder}/console']
        command += ['-chardev', f'socket,id=lab-terminal,fd={serial.fileno()}', '-serial', 'chardev:lab-terminal']
        command += ['-chardev', f'socket,id=lab-qmp,fd={monitor.fileno()}', '-mon', 'chardev=lab-qmp,mode=control']
        with serial, monitor, open(self.folder / 'said', 'wb') as said:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    env=environment,
                    pass_fds=(serial.fileno(), monitor.fileno()),
                )
            except FileNotFoundError as error:
                control.close()
                raise Unavailable(f'no program {command[0]} (package qemu-system-x86)') from error
        try:
            self.qmp = Qmp.over(control)
        except (QmpClosed, TimeoutError) as error:
            control.close()
            raise self._failed('does not greet') from error

    @property
    def output(self):
        """What the scenario has printed so far, as far as it was received."""
        return self._output.decode(errors='replace').replace('\r', '')

    def tell(self, word):
        """Says a word to the scenario, which has called lab.hear()."""
        self._serial.sendall(f'{word}\n'.encode())

    def wait_for(self, word, timeout=DEADLINE):
        """Waits until the scenario has said lab.at(word). GuestFailed when it ends first, or is late."""
        line = re.compile(rf'^at {re.escape(word)}$', re.MULTILINE)
        self._receive(lambda: line.search(self.output), timeout)
        if not line.search(self.output):
            raise self._failed(f'did not come to "{word}" in {timeout:.0f} s')

    def finish(self, timeout=120):
        """Waits for the end of the guest and returns the Result; `timeout` counts from the boot."""
        left = self._begin + timeout - time.monotonic()
        self._receive(lambda: False, max(left, 1))
        end = re.search(r'^guest-exit (\d+)$', self.output, re.MULTILINE)
        if end is None:
            raise self._failed(f'did not end in {timeout} s')
        seconds, output = time.monotonic() - self._begin, self.output[: end.start()]
        return Result(output, int(end.group(1)), self.console(), seconds, parse_checks(output))

    def console(self):
        path = self.folder / 'console'
        return path.read_bytes().decode(errors='replace').replace('\r', '') if path.exists() else ''

    def close(self):
        if self._process:
            self._process.kill()
            self._process.wait()
        for sock in (self._serial, self.qmp):
            if sock:
                sock.close()
        self._temporary.cleanup()

    def _patience(self):
        """How much longer things take than on a quiet machine, going by the boot."""
        ready = re.search(r'^\[([\d.]+)\] level \S+ is ready$', self.output, re.MULTILINE)
        return max(1.0, float(ready.group(1)) / USUAL_BOOT) if ready else 1.0

    def _receive(self, enough, timeout):
        """Collects output until enough() or the end of QEMU or of the time."""
        begin = time.monotonic()
        while not enough() and time.monotonic() < begin + timeout * self._patience():
            if select.select([self._serial], [], [], 1)[0]:
                data = self._serial.recv(1 << 16)
                if not data:
                    return
                self._output += data

    def _failed(self, why):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        said = (self.folder / 'said').read_text(errors='replace').strip()
        if self._process.poll() is not None:
            why = f'ended without a word (status {self._process.returncode})'
        console = self.console()[-4000:]
        return GuestFailed(
            f'the guest {why}: {said}\n--- its output\n{self.output}\n--- end of its console\n{console}'
        )


def start_or_skip(guest, script, args=()):
    """guest.start() which skips the test, saying why, when a kernel or another part cannot be had."""
    need('qemu-system-x86_64')
    try:
        return guest.start(script, args)
    except Unavailable as why:
        pytest.skip(f'no guest: {why}')


def run_or_skip(guest, script, args=(), timeout=120):
    """guest.run() which does the same."""
    with start_or_skip(guest, script, args) as machine:
        return machine.finish(timeout)
