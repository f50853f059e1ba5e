#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A guest in the guest reserves its disk: nested_guest.py QEMU HELPER KERNEL

The inner guest is this one's own kernel (KERNEL: uncompressed, which saves half a minute), modules, shell
and sg_persist. Its only disk is that of a nexus, through scsi-block and QEMU's reservation manager; QEMU
runs as an ordinary user.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from lab import check, lab, main, run, say, uptime
from pr import Helper, can_write, quiet, reset, sg_keys

LUN = lab.luns[0]
X, Y = LUN.x.disk, LUN.y.disk
QEMU, HELPER, KERNEL = sys.argv[1:]
del sys.argv[1:]  # else main() takes them for names of checks
USER, KEY = 107, 0xCAFE
FOLDER = pathlib.Path('/tmp/inner')
MODULES = ['virtio_pci', 'virtio_scsi', 'sd_mod', 'sg']
SIGNATURE = b'~Module signature appended'
CONFLICT = 24  # exit status of sg_persist
# Nothing here is needed for a reservation; all of it takes seconds in a guest in a guest.
QUICKER = (
    'acpi=off cryptomgr.notests lsm= mitigations=off nokaslr noreplace-smp quiet rodata=off '
    'random.trust_cpu=on'
)
INIT = """#!/bin/busybox sh
export PATH=/bin:/usr/bin
/bin/busybox mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec < /dev/null > /dev/console 2>&1
for module in $(cat /modules); do
    case $module in */scsi_mod.ko) insmod $module scan=none ;; *) insmod $module ;; esac
done
echo 0 0 0 > /sys/class/scsi_host/host0/scan
tries=0
while ! [ -b /dev/sda ] && [ $tries -lt 600 ]; do usleep 100000; tries=$((tries + 1)); done
step() { "$@"; echo "STATUS $?: $*"; }
step sg_persist --out --register --param-sark=KEY /dev/sda
step sg_persist --out --reserve --param-rk=BAD --prout-type=3 /dev/sda
step sg_persist --out --reserve --param-rk=KEY --prout-type=3 /dev/sda
step sg_persist --in --read-reservation /dev/sda
step dd if=/init of=/dev/sda bs=512 count=1 conv=fsync
reboot -f
"""


def modules_in_order():
    """Paths of MODULES and all they need, each behind what it needs."""
    top = pathlib.Path('/lib/modules') / os.uname().release
    needs = dict(line.split(':', 1) for line in (top / 'modules.dep').read_text().splitlines())
    by_name = {pathlib.Path(path).stem.replace('-', '_'): path for path in needs}
    order = []
    for path in (by_name[name] for name in MODULES):
        order += [one for one in [*reversed(needs[path].split()), path] if one not in order]
    return [top / path for path in order]


def libraries(program):
    text = run('/lib64/ld-linux-x86-64.so.2', '--list', program).stdout
    return {pathlib.Path(path) for path in re.findall(r'(/\S+) \(', text)}


def make_initramfs(target):
    """An archive with a shell, sg_persist and what they need."""
    root = pathlib.Path('/tmp/nested')
    for folder in ('bin', 'proc', 'sys', 'dev'):
        (root / folder).mkdir(parents=True)
    sg_persist, modules = pathlib.Path('/usr/bin/sg_persist'), modules_in_order()
    for path in [sg_persist, *libraries(sg_persist), *modules]:
        copy = root / str(path)[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes().partition(SIGNATURE)[0])  # checking signatures takes seconds
        copy.chmod(0o755)
    shutil.copy('/usr/bin/busybox', root / 'bin')
    (root / 'modules').write_text('\n'.join(map(str, modules)))
    init = root / 'init'
    init.write_text(INIT.replace('KEY', f'{KEY:#x}').replace('BAD', f'{KEY + 1:#x}'))
    init.chmod(0o755)
    run('sh', '-c', f'find . | cpio -o -H newc > {target}', cwd=root)


def run_guest(helper):
    """Runs the inner guest to its end and returns its console."""
    for path in (X, FOLDER, helper.path):
        os.chown(path, USER, USER)
    command = [QEMU, '-machine', 'pc', '-accel', 'tcg', '-cpu', 'qemu64,-cx16', '-m', '192']
    command += ['-L', '/firmware', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot']
    command += ['-global', 'apic-common.vapic=off']
    command += ['-serial', f'file:{FOLDER}/console', '-kernel', KERNEL, '-initrd', FOLDER / 'initramfs']
    command += ['-append', f'console=ttyS0 panic=-1 rdinit=/init tsc=reliable {QUICKER}']
    command += ['-object', f'pr-manager-helper,id=pr0,path={helper.path}']
    command += ['-blockdev', f'host_device,node-name=disk,filename={X},pr-manager=pr0']
    command += ['-device', 'virtio-scsi-pci,id=scsi0', '-device', 'scsi-block,bus=scsi0.0,drive=disk']
    begin = uptime()
    try:
        said = run(*command, user=USER, group=USER, extra_groups=[], timeout=850).stdout
        assert said == '', said
        return (FOLDER / 'console').read_text(errors='replace')
    except subprocess.TimeoutExpired as error:
        text = (FOLDER / 'console').read_text(errors='replace')
        raise AssertionError(f'the inner guest does not end: {text[-2000:]}') from error
    finally:
        say(f'the inner guest took {uptime() - begin:.0f} s')


@check(deadline=900)
def a_guest_in_the_guest_reserves_its_disk():
    FOLDER.mkdir()
    make_initramfs(FOLDER / 'initramfs')
    reset(LUN)
    assert can_write(Y)
    with Helper(program=HELPER) as helper:
        console = run_guest(helper)
    print(console)
    statuses = [int(status) for status in re.findall(r'^STATUS (\d+):', console, re.MULTILINE)]
    assert statuses == [0, CONFLICT, 0, 0, 0], console
    assert f'Key={KEY:#x}' in console and 'type: Exclusive Access' in console, console


@check
def the_other_nexus_sees_it():
    quiet(Y)
    assert sg_keys(Y) == [KEY]
    text = run('sg_persist', '--in', '--read-reservation', Y).stdout
    assert f'Key={KEY:#x}' in text and 'type: Exclusive Access' in text, text


@check
def the_other_nexus_is_fenced():
    assert not can_write(Y)
    with open(X, 'rb') as disk:
        assert disk.read(14) == b'#!/bin/busybox', 'the inner guest has not written'


main()
