# SPDX-License-Identifier: Apache-2.0
"""What each process of the reservation helper may still do, read from /proc.

The server is the one that clients talk to, the keeper has the privileges, its workers carry out commands.
"""

import os
import pwd
import shutil

import pytest

from lib.prhelper import sanitized, wait_until
from lib.program import status
from lib.tools import run

SYS_RAWIO, SYS_ADMIN, DAC_OVERRIDE = 1 << 17, 1 << 21, 1 << 1
NOBODY = pwd.getpwnam('nobody')
EVERY_SET = ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')

pytestmark = pytest.mark.better


class Family:
    """The processes by their part; there is a worker as soon as a command was carried out."""

    def __init__(self, helper):
        assert helper.serves()
        self.server = helper.pid()
        wait_until(lambda: self.find(helper), 'the three kinds of processes')

    def find(self, helper):
        self.keeper, self.workers = helper.keeper(), helper.workers()
        return self.keeper and self.workers

    def all(self):
        return [self.server, self.keeper, *self.workers]


def capabilities(pid, *sets):
    return {name: int(status(pid)[name], 16) for name in sets or EVERY_SET}


def ids(pid):
    return {name: [int(word) for word in status(pid)[name].split()] for name in ('Uid', 'Gid', 'Groups')}


@pytest.fixture
def copy(tmp):
    """The program where every user can reach it."""

    def make(helper):
        path = tmp / 'qemu-pr-helper'
        shutil.copy(helper.binary, path)
        path.chmod(0o755)
        tmp.chmod(0o777)
        helper.binary = str(path)
        return helper

    return make


def test_server_has_no_capability(helper):
    family = Family(helper())
    assert capabilities(family.server) == dict.fromkeys(EVERY_SET, 0)
    assert ids(family.server) == {'Uid': [0] * 4, 'Gid': [0] * 4, 'Groups': []}


def test_keeper_and_workers_have_what_they_need(helper):
    family = Family(helper())
    keeper = capabilities(family.keeper)
    assert keeper['CapEff'] & SYS_RAWIO
    assert not keeper['CapPrm'] & ~(SYS_RAWIO | SYS_ADMIN | DAC_OVERRIDE)
    for pid in family.workers:
        worker = capabilities(pid)
        assert worker['CapEff'] == SYS_RAWIO
        assert not worker['CapPrm'] & ~(SYS_RAWIO | SYS_ADMIN)
        assert not worker['CapBnd'] & ~(SYS_RAWIO | SYS_ADMIN | DAC_OVERRIDE)
    for pid in (family.keeper, *family.workers):
        assert capabilities(pid, 'CapInh', 'CapAmb') == {'CapInh': 0, 'CapAmb': 0}


def test_no_new_privileges_and_filter(helper):
    """Seccomp 2 is a filter."""
    one = helper()
    if sanitized(one.binary):
        pytest.skip('a sanitizer does not live with the filter of system calls')
    for pid in Family(one).all():
        found = status(pid)
        assert (found['NoNewPrivs'], found['Seccomp']) == ('1', '2'), pid


def test_without_the_filter(helper):
    for pid in Family(helper('--no-sandbox')).all():
        found = status(pid)
        assert (found['NoNewPrivs'], found['Seccomp']) == ('1', '0'), pid


@pytest.mark.parametrize(
    'args, uid, gid',
    [
        (['-u', 'nobody'], NOBODY.pw_uid, 0),
        (['-u', 'nobody', '-g', 'daemon'], NOBODY.pw_uid, 1),
        (['-u', str(NOBODY.pw_uid), '-g', '1'], NOBODY.pw_uid, 1),
        (['-g', 'daemon'], 0, 1),
        (['-u', '4242', '-g', '4243'], 4242, 4243),
    ],
    ids=lambda value: '_'.join(value) if isinstance(value, list) else str(value),
)
def test_user_and_group(helper, args, uid, gid):
    """The server becomes that user; the rest stays root, which multipathd insists on."""
    served = helper('-q', *args)
    family = Family(served)
    assert ids(family.server) == {'Uid': [uid] * 4, 'Gid': [gid] * 4, 'Groups': []}
    assert capabilities(family.server) == dict.fromkeys(EVERY_SET, 0)
    assert ids(family.keeper)['Uid'] == [0] * 4
    served.stop()
    assert not served.path.exists()
    assert served.stderr() == ''


def test_files_go_although_the_server_could_not_remove_them(helper, tmp):
    served = helper('-u', 'nobody', '-f', tmp / 'pid')
    assert Family(served)
    served.stop()
    assert not served.path.exists() and not (tmp / 'pid').exists()


def test_files_go_when_the_dropped_server_is_killed(helper, tmp):
    served = helper('-u', 'nobody', '-f', tmp / 'pid')
    assert Family(served)
    served.kill()
    served.wait_gone()
    assert not served.path.exists() and not (tmp / 'pid').exists()


def test_server_cannot_be_looked_into(helper):
    """A server of user nobody holds descriptors of disks: other processes of nobody must not reach them."""
    served = helper('-u', 'nobody')
    family = Family(served)
    assert os.stat(f'/proc/{family.server}/mem').st_uid == 0
    as_nobody = ['setpriv', '--reuid=nobody', '--regid=0', '--clear-groups']
    run(*as_nobody, 'ls', f'/proc/{family.server}/fd', ok=(1, 2))


def test_workers_hold_nothing_of_the_clients(helper):
    """Neither the listening socket nor connections reach the processes with privileges."""
    served = helper()
    with served.connect():
        family = Family(served)
        ours = sockets(family.server)
        for pid in (family.keeper, *family.workers):
            assert not sockets(pid) & listening(served.path), pid
            assert not sockets(pid) & ours, pid


def sockets(pid):
    found = set()
    for entry in os.listdir(f'/proc/{pid}/fd'):
        try:
            link = os.readlink(f'/proc/{pid}/fd/{entry}')
        except FileNotFoundError:
            continue
        if link.startswith('socket:['):
            found.add(link[8:-1])
    return found


def listening(path):
    with open('/proc/net/unix') as file:
        return {line.split()[6] for line in file if line.rstrip().endswith(str(path))}


# ---- Started by somebody else than root ----


def test_refuses_without_capability(helpers, copy):
    one = copy(helpers())
    one.spawn('-k', one.path, prefix=['setpriv', '--reuid=nobody', '--regid=nogroup', '--clear-groups']).wait(
        1
    )
    assert one.stderr().startswith('qemu-pr-helper: Failed to drop privileges'), one.stderr()
    assert 'CAP_SYS_RAWIO' in one.stderr()
    assert not one.path.exists()


def test_root_without_capability(helpers):
    one = helpers()
    one.spawn('-k', one.path, prefix=['setpriv', '--bounding-set=-sys_rawio']).wait(1)
    assert 'CAP_SYS_RAWIO' in one.stderr(), one.stderr()
    assert not one.path.exists()


AMBIENT = [
    'setpriv',
    '--reuid=nobody',
    '--regid=nogroup',
    '--clear-groups',
    '--inh-caps=+sys_rawio',
    '--ambient-caps=+sys_rawio',
]


def test_runs_without_root(helpers, copy, tmp):
    one = copy(helpers())
    one.spawn('-q', '-k', one.path, '-f', tmp / 'pid', prefix=AMBIENT).wait_ready()
    family = Family(one)
    for pid in family.all():
        assert ids(pid)['Uid'] == [NOBODY.pw_uid] * 4
        assert status(pid)['NoNewPrivs'] == '1'
    assert capabilities(family.server, 'CapPrm', 'CapEff', 'CapAmb') == {
        'CapPrm': 0,
        'CapEff': 0,
        'CapAmb': 0,
    }
    for pid in family.workers:
        assert capabilities(pid, 'CapEff', 'CapPrm') == {'CapEff': SYS_RAWIO, 'CapPrm': SYS_RAWIO}
    one.stop()
    assert not one.path.exists() and not (tmp / 'pid').exists()
    assert one.stderr() == ''


def test_without_root_no_other_user(helpers, copy):
    one = copy(helpers())
    one.spawn('-k', one.path, '-u', 'daemon', prefix=AMBIENT).wait(1)
    assert 'Failed to drop privileges' in one.stderr(), one.stderr()
    one.wait_gone()
    assert not one.path.exists()
