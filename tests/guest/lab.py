# SPDX-License-Identifier: Apache-2.0
"""The side of the guest lab that runs in the guest: makes targets, nexuses and maps, then runs the scenario.

A scenario is a shell script, or a Python script that imports this module:

    from lab import check, main, lab, run

    @check
    def keys_are_seen_by_the_other_nexus():
        ...

    main()

Each function marked with @check is one line of the result. `lab.luns[n]` is a LUN: its two nexuses `.x` and
`.y` (each `.disk` /dev/sdX, `.sg` /dev/sgN, `.name` sdX) and, with multipath, `.map` /dev/mapper/mpathX. A
shell script has them, for the first LUN, as SDX SDY SGX SGY MP.
"""

import contextlib
import glob
import os
import pathlib
import runpy
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback

TARGET = pathlib.Path('/sys/kernel/config/target')
USUAL_BOOT = 20  # seconds until a level is ready; as in tests/lib/guest.py
# The checker: newer versions read the disk of this target, which a reservation of another host forbids.
MULTIPATH_CONF = """defaults {{
    user_friendly_names yes
    find_multipaths no
    path_grouping_policy {policy}
    reservation_key {key}
    polling_interval 1
    max_polling_interval 1
    {more}
}}
overrides {{
    detect_checker no
    path_checker tur
}}
blacklist {{
    devnode "^({outsiders})$"
}}
"""


class Skip(Exception):
    """Raised by a check that cannot run here; the text says why."""


class Late(Exception):
    """A check's deadline has passed."""


# ---- Small things ----


def say(*words):
    print(f'[{uptime():.1f}]', *words, flush=True)


def uptime():
    return float(pathlib.Path('/proc/uptime').read_text().split()[0])


def patience(seconds):
    """The deadline for what takes less than that on a quiet machine: longer where the boot took longer, too."""
    return seconds * max(1.0, float(os.environ.get('LAB_READY', 0)) / USUAL_BOOT)


def write(path, text):
    with open(path, 'w') as file:
        file.write(str(text))


def read(path):
    return pathlib.Path(path).read_text().strip()


def run(*command, ok=(0,), timeout=30, **options):
    """Runs a program; .stdout holds what it wrote to both streams. ok=None allows every status."""
    options.setdefault('stdout', subprocess.PIPE)
    options.setdefault('stderr', subprocess.STDOUT)
    options.setdefault('stdin', subprocess.DEVNULL)
    done = subprocess.run([str(word) for word in command], text=True, timeout=patience(timeout), check=False, **options)
    assert (
        ok is None or done.returncode in ok
    ), f'{" ".join(map(str, command))}: status {done.returncode}: {done.stdout}'
    return done


def wait(condition, what, deadline=10.0):
    """Polls until condition() is true and returns its value."""
    deadline = patience(deadline)
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f'waited {deadline:.0f} s in vain: {what}')
        time.sleep(0.02)


def modprobe(*names):
    for name in names:
        run('modprobe', '-q', name, ok=None)


# ---- The host ----

_terminal = None


def at(word):
    """Tells the host where the scenario is."""
    print(f'at {word}', flush=True)


def hear():
    """Waits for the next word of the host."""
    global _terminal
    if _terminal is None:
        _terminal = open('/dev/ttyS1')  # noqa: SIM115: open as long as the scenario
    return _terminal.readline().strip()


# ---- Checks ----

_checks = []


def check(function=None, *, deadline=60):
    """Marks a function as a check, in the order of definition."""

    def mark(one):
        _checks.append((one, deadline))
        return one

    return mark(function) if function else mark


def main(before_each=None):
    """Runs the checks (those that arguments name, if any) and ends with status 1 if one has failed."""
    failures, only = 0, sys.argv[1:]
    for function, deadline in _checks:
        name = function.__name__
        if only and name not in only:
            continue
        begin = time.monotonic()
        try:
            with _deadline(deadline):
                if before_each:
                    before_each()
                function()
        except Skip as why:
            print(f'skip {name}: {why}', flush=True)
        except (Exception, Late) as error:  # the other checks still run
            failures += 1
            traceback.print_exc(file=sys.stdout)
            print(f'not ok {name}: {type(error).__name__}: {" ".join(str(error).split())[:600]}', flush=True)
        else:
            print(f'ok {name}', flush=True)
        say(f'{name} took {time.monotonic() - begin:.1f} s')
    sys.stdout.flush()
    os._exit(1 if failures else 0)  # threads that hang in a wedged device do not matter any more


@contextlib.contextmanager
def _deadline(seconds):
    seconds = patience(seconds)

    def late(*_):
        raise Late(f'not done in {seconds:.0f} s')

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# ---- Targets ----


class Nexus:
    """One path to a LUN: an initiator port and a target port."""

    def __init__(self, device):
        self.device = pathlib.Path(device).resolve()  # its SCSI device in sysfs
        self.name = os.listdir(self.device / 'block')[0]
        self.disk = f'/dev/{self.name}'
        self.sg = f'/dev/{os.listdir(self.device / "scsi_generic")[0]}'

    def state(self, value):
        """'offline' or 'running', as an administrator sets it."""
        write(self.device / 'state', f'{value}\n')


class Lun:
    """A LUN with its nexuses and its map."""

    def __init__(self, name, nexuses):
        self.name, self.map = name, None
        self.x, self.y, *rest = nexuses
        self.z = (
            rest[0] if rest else None
        )  # a third nexus, with the setting LAB_NEXUSES=3: never part of the map

    @property
    def dm(self):
        """dm-N of the map."""
        return os.path.basename(os.path.realpath(self.map))


class Lab:
    def __init__(self):
        self.level = read('/lab/level')
        pairs = pathlib.Path('/lab/settings').read_text().split('\0')[:-1]
        self.settings = dict(pair.split('=', 1) for pair in pairs)
        self.luns = []

    def setting(self, name, default):
        return self.settings.get(name, default)

    def prepare(self):
        if self.level.endswith('mpath'):
            start_udev()
        if self.level in ('lio', 'mpath'):
            self.luns = loop_luns(self._backstores(), int(self.setting('LAB_NEXUSES', 2)))
        elif self.level in ('iscsi', 'iscsimpath'):
            self.luns = iscsi_luns(self._backstores())
        if self.level.endswith('mpath'):
            start_multipath(self)

    def _backstores(self):
        target_core()
        count = int(self.setting('LAB_LUNS', 1))
        return [backstore(f'lun{n}', int(self.setting('LAB_SIZE', 64))) for n in range(count)]

    def environment(self):
        if self.luns:
            lun = self.luns[0]
            os.environ.update(SDX=lun.x.disk, SDY=lun.y.disk, SGX=lun.x.sg, SGY=lun.y.sg, MP=lun.map or '')


lab = None


def target_core():
    """LIO looks for the folder of its power-loss files when its first module is loaded."""
    for folder in ('/var/target/pr', '/etc/target/pr'):
        os.makedirs(folder, exist_ok=True)
    modprobe('configfs', 'sd_mod', 'sg', 'target_core_mod', 'target_core_file')
    if not os.path.ismount('/sys/kernel/config'):
        run('mount', '-t', 'configfs', 'configfs', '/sys/kernel/config')


def backstore(name, megabytes):
    """A LUN that lives in a file of the guest's memory; returns its folder."""
    folder = TARGET / 'core' / 'fileio_0' / name
    folder.mkdir(parents=True)
    with open(f'/run/{name}.img', 'wb') as image:
        image.truncate(megabytes << 20)
    write(folder / 'control', f'fd_dev_name=/run/{name}.img,fd_dev_size={megabytes << 20}')
    write(folder / 'wwn' / 'vpd_unit_serial', f'{int(name.strip("lun")) + 1:08x}-0000-4000-8000-5ca1ab1e5ca1')
    write(folder / 'enable', 1)
    return folder


def loop_target(number, stores):
    """A tcm_loop target: one SCSI host, one nexus to each of the LUNs. Returns its SCSI devices."""
    portal = TARGET / 'loopback' / f'naa.5001405aaaaaaaa{number}' / 'tpgt_1'
    portal.mkdir(parents=True)
    if (portal / 'rtpi').exists():  # newer kernels leave 0 for every port; reservations need them distinct
        write(portal / 'rtpi', number)
    write(portal / 'nexus', f'naa.6001405bbbbbbbb{number}')
    for lun, store in enumerate(stores):
        link_lun(portal, lun, store)
    host, channel, _ = read(portal / 'address').split(':')
    return [f'/sys/bus/scsi/devices/{host}:{channel}:1:{lun}' for lun in range(len(stores))]


def link_lun(portal, number, store):
    folder = portal / 'lun' / f'lun_{number}'
    folder.mkdir(parents=True)
    (folder / 'port').symlink_to(store)


def loop_luns(stores, nexuses=2):
    modprobe('tcm_loop')
    (TARGET / 'loopback').mkdir(exist_ok=True)
    sides = [loop_target(number, stores) for number in range(1, nexuses + 1)]
    return [Lun(store.name, [found_disk(side[n]) for side in sides]) for n, store in enumerate(stores)]


def found_disk(device):
    wait(
        lambda: glob.glob(f'{device}/block/*') and glob.glob(f'{device}/scsi_generic/*'),
        f'no disk at {device}',
    )
    nexus = Nexus(device)
    wait(lambda: os.path.exists(nexus.disk) and os.path.exists(nexus.sg), f'no {nexus.disk} or {nexus.sg}')
    return nexus


def iscsi_luns(stores):
    """Two sessions over the loopback interface. PREEMPT AND ABORT works, unlike with tcm_loop."""
    modprobe('crc32c_generic', 'crc32c', 'iscsi_target_mod', 'iscsi_tcp')
    (TARGET / 'iscsi').mkdir(exist_ok=True)
    sides = []
    for number in (1, 2):
        portal = TARGET / 'iscsi' / 'iqn.2026-01.lab:t' / f'tpgt_{number}'
        address = f'127.0.0.{number}'
        (portal / 'np' / f'{address}:3260').mkdir(parents=True)
        for lun, store in enumerate(stores):
            link_lun(portal, lun, store)
        for name, value in (('authentication', 0), ('demo_mode_write_protect', 0), ('generate_node_acls', 1),
                            ('cache_dynamic_acls', 1)):  # fmt: skip
            write(portal / 'attrib' / name, value)
        write(portal / 'enable', 1)
        known = set(glob.glob('/sys/class/iscsi_session/session*'))
        initiator = f'iqn.2026-01.lab:init{number}'
        run('iscsistart', '-i', initiator, '-t', 'iqn.2026-01.lab:t', '-g', number, '-a', address, '-p', 3260)
        session = wait(
            lambda k=known: set(glob.glob('/sys/class/iscsi_session/session*')) - k, 'no new session'
        ).pop()
        wait(
            lambda s=session, n=len(stores): len(glob.glob(f'{s}/device/target*/*:*/block/*')) == n,
            'disks missing',
        )
        devices = glob.glob(f'{session}/device/target*/*:*')
        sides.append(sorted(devices, key=lambda path: int(path.rpartition(':')[2])))
    return [Lun(store.name, [found_disk(side[n]) for side in sides]) for n, store in enumerate(stores)]


# ---- udev and multipath ----


def start_udev():
    os.makedirs('/run/udev', exist_ok=True)
    run('/usr/lib/systemd/systemd-udevd', '--daemon')


def start_multipath(this):
    modprobe('dm-mod', 'dm-multipath', 'dm-round-robin', 'dm-service-time', 'scsi_dh_alua')
    os.makedirs('/etc/multipath', exist_ok=True)
    write('/etc/multipath.conf', MULTIPATH_CONF.format(
        policy=this.setting('LAB_POLICY', 'group_by_prio'),
        key=this.setting('LAB_RKEY', 'file'),
        more=this.setting('LAB_MULTIPATH', ''),
        outsiders='|'.join([lun.z.name for lun in this.luns if lun.z] or ['none']),
    ))  # fmt: skip
    start_multipathd()
    for lun in this.luns:
        lun.map = wait(lambda one=lun: map_of(one), f'multipathd made no map of {lun.name}', 20)
    run('udevadm', 'settle')


def start_multipathd():
    """Starts the daemon and waits until it answers."""
    os.makedirs('/run/multipathd', exist_ok=True)
    with open('/run/multipathd.log', 'ab') as log:
        subprocess.run(
            ['multipathd', '-v2'], stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60, check=True
        )
    wait(lambda: multipathd('show status', None).startswith('path'), 'multipathd does not answer', 30)


def stop_multipathd():
    multipathd('shutdown', None)  # it may end before it answers
    wait(lambda: run('pidof', 'multipathd', ok=None).returncode != 0, 'multipathd does not end', 30)


def multipathd(command, absent='fail'):
    """Its answer to a command, by its socket; '' when it cannot be reached and absent is None."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect('\0/org/kernel/linux/storage/multipathd')
            text = command.encode() + b'\0'
            sock.sendall(struct.pack('@N', len(text)) + text)
            with sock.makefile('rb') as file:
                (length,) = struct.unpack('@N', file.read(8))
                return file.read(length).rstrip(b'\0').decode().strip()
    except (OSError, struct.error):
        if absent is None:
            return ''
        raise


def map_of(lun):
    for folder in glob.glob(f'/sys/block/{lun.x.name}/holders/dm-*'):
        if set(os.listdir(f'{folder}/slaves')) == {lun.x.name, lun.y.name}:
            path = f'/dev/mapper/{read(f"{folder}/dm/name")}'
            return path if os.path.exists(path) else None
    return None


# ---- The start ----


def _script():
    sys.argv = ['/lab/script', *pathlib.Path('/lab/args').read_text().split('\0')[:-1]]
    with open('/lab/script') as file:
        first = file.readline()
    if first.startswith('#!') and 'python' not in first:
        return subprocess.run(sys.argv, check=False).returncode
    try:
        runpy.run_path('/lab/script', run_name='__main__')
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        return 99
    return 0


def _start():
    global lab
    lab = Lab()
    try:
        lab.prepare()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(run('dmesg').stdout[-3000:])
        if os.path.exists('/run/multipathd.log'):
            print(read('/run/multipathd.log'))
        return 98
    lab.environment()
    os.environ['LAB_READY'] = str(uptime())
    say(f'level {lab.level} is ready')
    status = _script()
    sys.stdout.flush()
    return status


if __name__ == '__main__':
    import lab as _lab  # the module that scenarios import, not this __main__

    status = _lab._start()
    sys.stdout.flush()
    os._exit(status & 0xFF)
