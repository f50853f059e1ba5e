# SPDX-License-Identifier: Apache-2.0
"""Mounts come and go: with the export, with the daemon, by somebody else's hand."""

import os
import pwd
import subprocess

import pytest

from lib.differential import reference
from lib.fusefile import cleaned, export_option, is_mounted, mounts, need_fuse, outcome, wait_unmounted
from lib.qmp import QmpError
from lib.tools import need, run, wait_until

MIB = 1 << 20
PATTERN = bytes(range(256)) * 4096


@pytest.fixture
def image(tmp):
    path = tmp / 'image'
    path.write_bytes(PATTERN)
    return path


@pytest.fixture
def mountpoint(tmp):
    need_fuse()
    path = tmp / 'mountpoint'
    path.write_bytes(b'below')
    with cleaned(path):
        yield path


def node(image, name='n0'):
    return ('--blockdev', f'driver=file,node-name={name},filename={image}')


def events(served, ident):
    served.qmp.wait_event('BLOCK_EXPORT_DELETED', id=ident)
    assert not [e for e in served.cmd('query-block-exports') if e['id'] == ident]


def test_the_mount_comes_and_goes_with_the_export(daemon, image, mountpoint):
    served = daemon(*node(image))
    for i in range(5):
        served.export('n0', f'e{i}', 'fuse', mountpoint=str(mountpoint), writable=True)
        assert is_mounted(mountpoint)
        assert mountpoint.read_bytes() == PATTERN
        served.cmd('block-export-del', id=f'e{i}')
        events(served, f'e{i}')
        assert not is_mounted(mountpoint)
        assert mountpoint.read_bytes() == b'below'


def test_the_mount_tells_what_it_is(daemon, image, mountpoint):
    daemon(*node(image), '--export', export_option(mountpoint, ident='disk-1'))
    with open('/proc/self/mounts') as file:
        line = next(line for line in file if f' {mountpoint} ' in line).split()
    assert line[0] == 'disk-1' and line[2] == 'fuse.granary'
    assert {'default_permissions', 'allow_other', 'nosuid', 'nodev'} <= set(line[3].split(','))


@pytest.mark.sanitize
@pytest.mark.parametrize('end', ['signal', 'quit', 'delete'])
def test_open_files_lose_their_connection(end, daemon, image, mountpoint):
    served = daemon(*node(image), '--export', export_option(mountpoint))
    fd = os.open(mountpoint, os.O_RDWR)
    try:
        assert os.pread(fd, 256, 0) == PATTERN[:256]
        if end == 'delete':
            served.cmd('block-export-del', id='e0')
            events(served, 'e0')
        elif end == 'quit':
            served.quit()
        else:
            served.stop()
        assert not is_mounted(mountpoint)
        assert outcome(os.fstat, fd) == 'ENOTCONN'
        assert outcome(os.pread, fd, 10, 512 * 1024) == 'ENOTCONN'
        assert outcome(os.pwrite, fd, b'x', 0) == 'ENOTCONN'
    finally:
        assert outcome(os.close, fd) in (None, 'ENOTCONN')
    assert image.read_bytes() == PATTERN


@pytest.mark.sanitize
def test_an_unmount_from_outside_ends_the_export(daemon, image, mountpoint):
    served = daemon(*node(image), '--export', export_option(mountpoint))
    run('umount', mountpoint)
    events(served, 'e0')
    assert served.stderr().count('was unmounted by somebody else') == 1
    served.export('n0', 'e0', 'fuse', mountpoint=str(mountpoint))
    assert mountpoint.read_bytes() == PATTERN
    served.quit()
    assert not is_mounted(mountpoint)


def test_a_lazy_unmount_waits_for_open_files(daemon, image, mountpoint):
    served = daemon(*node(image), '--export', export_option(mountpoint))
    with open(mountpoint, 'r+b') as file:
        run('umount', '-l', mountpoint)
        file.write(b'last words')
        file.flush()
        assert file.seek(0) == 0 and file.read() == b'last words' + PATTERN[10:]
        assert served.cmd('query-block-exports')
    events(served, 'e0')
    assert image.read_bytes() == b'last words' + PATTERN[10:]


@pytest.mark.sanitize
def test_a_mount_that_a_dead_daemon_has_left_is_removed(daemon, image, mountpoint):
    options = (*node(image), '--export', export_option(mountpoint))
    first = daemon(*options)
    first.kill()
    assert is_mounted(mountpoint)
    second = daemon(*options)
    assert [point for point, _ in mounts()].count(str(mountpoint)) == 1
    assert mountpoint.read_bytes() == PATTERN
    second.stop()
    assert not is_mounted(mountpoint)
    assert mountpoint.read_bytes() == b'below'


def test_a_mountpoint_is_used_once(daemon, image, mountpoint, tmp):
    served = daemon(*node(image), '--export', export_option(mountpoint))
    link = tmp / 'link'
    link.symlink_to(mountpoint)
    for path in (mountpoint, link, f'{tmp}/./mountpoint'):
        error = served.qmp.error(
            'block-export-add', type='fuse', id='e1', node_name='n0', mountpoint=str(path), writable=False
        )
        assert error.desc == f"There already is a FUSE export on '{path}'"
    assert mountpoint.read_bytes() == PATTERN
    served.cmd('block-export-del', id='e0')
    events(served, 'e0')
    served.export('n0', 'e1', 'fuse', mountpoint=str(link))  # what is behind the link
    assert is_mounted(mountpoint)
    served.stop()
    assert not is_mounted(mountpoint)


def attempt(served, **options):
    try:
        served.export('n0', 'e0', 'fuse', **options)
    except QmpError as error:
        return error.desc
    served.unexport('e0')
    return None


def test_errors_are_the_reference_s(daemon, image, mountpoint, tmp):
    peer = reference()
    (tmp / 'folder').mkdir()
    (tmp / 'loop').symlink_to('loop')
    cases = [
        {'mountpoint': str(tmp / name)}
        for name in ('folder', 'missing', 'loop', 'mountpoint', 'mountpoint/x')
    ]
    cases += [{}, {'mountpoint': ''}, {'mountpoint': str(mountpoint), 'allow-other': 'maybe'}]
    cases += [{'mountpoint': str(mountpoint), 'growable': 'yes'}]
    ours = daemon(*node(image))
    mine = [attempt(ours, **case) for case in cases]
    ours.stop()
    theirs = daemon(*node(image), **peer.options())
    assert mine == [attempt(theirs, **case) for case in cases]


def test_a_relative_mountpoint_is_unmounted_from_wherever_the_daemon_is(daemon, image, mountpoint):
    served = daemon(*node(image), '--export', export_option('mountpoint'))
    assert is_mounted(mountpoint)
    served.stop()
    assert not is_mounted(mountpoint)


@pytest.mark.sanitize
def test_another_size_is_seen_at_once(daemon, image, tmp):
    """Two exports of one node: what one of them changes, the other tells at once, its page cache included."""
    need_fuse()
    one, other = tmp / 'one', tmp / 'other'
    one.touch()
    other.touch()
    with cleaned(one, other):
        served = daemon(
            *node(image),
            '--export',
            export_option(one, ident='e0', growable='on'),
            '--export',
            export_option(other, ident='e1'),
        )
        with open(other, 'rb', buffering=0) as file:
            for size in (2 * MIB, MIB // 2, 5 * MIB, 4096, 15 * 512, 3 * MIB):
                if size % 5:
                    os.truncate(one, size)
                else:
                    served.cmd('block_resize', node_name='n0', size=size)
                assert os.stat(other).st_size == size
                assert os.fstat(file.fileno()).st_size == size
                assert len(os.pread(file.fileno(), 8 * MIB, 0)) == size
        served.stop()


def test_exports_of_several_kinds_share_a_node(daemon, image, mountpoint):
    """Also one whose clients rely on the size; then the file cannot be truncated."""
    served = daemon(*node(image), '--export', export_option(mountpoint), nbd=True)
    served.export('n0', 'e1', 'nbd', name='x', writable=True)
    assert outcome(os.truncate, mountpoint, 4096) == 'EBUSY'
    assert mountpoint.read_bytes() == PATTERN
    served.unexport('e1')
    os.truncate(mountpoint, 4096)
    assert mountpoint.read_bytes() == PATTERN[:4096]


def test_an_ordinary_user_s_export(daemon, image, tmp):
    """Through the set-user-ID helper; nobody else gets in, not even root."""
    need_fuse()
    need('fusermount3', 'setpriv')
    user = pwd.getpwnam('nobody')
    os.chmod(tmp, 0o711)
    folder = tmp / 'home'
    folder.mkdir()
    mountpoint = folder / 'mountpoint'
    mountpoint.touch()
    for path in (folder, mountpoint, image):
        os.chown(path, user.pw_uid, user.pw_gid)
    os.chmod(tmp, 0o777)  # the daemon's pid file and socket
    as_user = ('setpriv', f'--reuid={user.pw_uid}', f'--regid={user.pw_gid}', '--clear-groups')

    def read(*prefix):
        return subprocess.run([*prefix, 'cat', str(mountpoint)], capture_output=True, check=False)

    with cleaned(mountpoint):
        served = daemon(*node(image), '--export', export_option(mountpoint), prefix=as_user)
        assert is_mounted(mountpoint)
        assert read(*as_user).stdout == PATTERN
        done = read()
        assert done.returncode and not done.stdout
        error = served.qmp.error(
            'block-export-add', type='fuse', id='e1', node_name='n0', mountpoint=str(image), allow_other='on'
        )
        assert error.desc == 'Failed to mount FUSE session to export'
        served.cmd('block-export-del', id='e0')
        events(served, 'e0')
        assert not is_mounted(mountpoint)
        served.export('n0', 'e2', 'fuse', mountpoint=str(mountpoint))
        served.kill()
        assert is_mounted(mountpoint)
        again = daemon(*node(image), '--export', export_option(mountpoint), prefix=as_user)
        assert read(*as_user).stdout == PATTERN
        again.stop()
        wait_unmounted(mountpoint)


def test_requests_in_flight_when_the_daemon_ends(daemon, image, mountpoint):
    """Writers are told; what they were told to be written is there."""
    need('fio')
    served = daemon(*node(image), '--export', export_option(mountpoint))
    with subprocess.Popen(
        [
            *(
                'fio',
                '--name=x',
                f'--filename={mountpoint}',
                '--allow_file_create=0',
                '--rw=randwrite',
                '--bs=4k',
            ),
            *(
                '--size=1m',
                '--ioengine=libaio',
                '--iodepth=16',
                '--direct=1',
                '--time_based=1',
                '--runtime=600',
            ),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as load:
        wait_until(lambda: image.read_bytes() != PATTERN, 'nothing was written')
        served.stop()
        assert load.wait() != 0
    assert not is_mounted(mountpoint)
