# SPDX-License-Identifier: Apache-2.0
"""The reservation manager: nodes send commands to a helper, and whatever that does, the daemon lives, answers
with a sense that makes the guest try again, and tells its clients the truth."""

import os
import struct
import threading
import time

import pytest

from lib import peers
from lib.daemon import monitor_at
from lib.fakehelper import IN, FakeHelper, PeerGone, half_hello, never_answer, never_hello, refuse
from lib.prhelper import BINARY, PrHelper
from lib.program import StartError
from lib.prwire import READ_KEYS, REGISTER, out_list, pr_in, pr_out
from lib.qmp import DEADLINE, Qmp
from lib.tools import need_root, wait_until

pytestmark = pytest.mark.sanitize

NEVER_SENT, SENT = (0xB, 0x00, 0x06), (0xB, 0x08, 0x00)
INVALID_FIELD = (0x5, 0x24, 0x00)
NOT_HERE = (0x5, 0x20, 0x00)
KEYS = struct.pack('>IIQQ', 7, 16, 0x1234, 0xABCDEF)


# ---- Conversations ----


def answering(answer):
    """A helper whose every answer is what answer(peer, request) does."""

    def script(peer):
        peer.hello()
        while True:
            answer(peer, peer.request())

    return script


good = answering(lambda peer, request: peer.reply(payload=KEYS if request.opcode == IN else b''))


def identity(path):
    return path.stat().st_dev, path.stat().st_ino


# ---- Around the daemon ----


@pytest.fixture
def fake(tmp):
    """Starts fake helpers and ends them with the test."""
    started = []

    def factory(script=good, name='h.sock'):
        started.append(Fake(tmp / name, script).start())
        return started[-1]

    yield factory
    for one in started:
        one.stop()


class Fake(FakeHelper):
    """A helper that may be stopped before the test ends."""

    stopped = False

    def stop(self):
        if not self.stopped:
            self.stopped = True
            super().stop()


def disk(tmp, name='disk'):
    path = tmp / f'{name}.img'
    path.write_bytes(bytes(65536))
    return path


def manager(tmp, ident='p', path='h.sock', **properties):
    more = ''.join(f',{name}={value}' for name, value in properties.items())
    return ['--object', f'pr-manager-helper,id={ident},path={tmp / path}{more}']


def file_node(path, ident='n', pr_manager='p', more=''):
    return ['--blockdev', f'file,node-name={ident},filename={path},pr-manager={pr_manager}{more}']


class Answer:
    """The result of x-granary-pr-execute."""

    def __init__(self, result):
        self.status = result['status']
        self.data = bytes.fromhex(result['data'])
        sense = bytes.fromhex(result['sense'])
        assert len(sense) == (96 if self.status == 2 else 0), sense
        self.check = (sense[2] & 15, sense[12], sense[13]) if sense else None


def arguments(cdb, data, node):
    return {'node-name': node, 'cdb': cdb.hex(), **({'data': data.hex()} if data else {})}


def execute(qmp, cdb, data=b'', node='n'):
    return Answer(qmp.cmd_args('x-granary-pr-execute', arguments(cdb, data, node)))


def read_keys(qmp, node='n'):
    return execute(qmp, pr_in(READ_KEYS), node=node)


def register(qmp, node='n'):
    return execute(qmp, pr_out(REGISTER), out_list(service_key=0x1234), node=node)


def begin(qmp, node='n'):
    """Sends READ KEYS without waiting."""
    return qmp.send('x-granary-pr-execute', arguments(pr_in(READ_KEYS), b'', node))


def end(qmp, ident):
    return Answer(qmp.reply_to(ident)['return'])


def changes(qmp, ident='p'):
    """The states that were reported for a manager, in order."""
    qmp.cmd('query-version')
    return [
        event['data']['connected']
        for event in qmp.events
        if event['event'] == 'PR_MANAGER_STATUS_CHANGED' and event['data']['id'] == ident
    ]


def wait_change(qmp, connected, ident='p'):
    qmp.wait_event('PR_MANAGER_STATUS_CHANGED', id=ident, connected=connected)


def state(qmp):
    return {one['id']: one['connected'] for one in qmp.cmd('query-pr-managers')}


class Sessions:
    """Further monitors of a daemon: each runs one command at a time."""

    def __init__(self, tmp, count):
        self.paths = [tmp / f'monitor{i}.sock' for i in range(count)]

    def args(self):
        return [word for i, path in enumerate(self.paths) for word in monitor_at(path, f'm{i}')]

    def connect(self):
        return [Qmp.connect(path) for path in self.paths]


# ---- Good helpers ----


def test_commands_reach_the_helper_with_the_disk(daemon, tmp, fake):
    helper = fake()
    path = disk(tmp)
    served = daemon(*manager(tmp), *file_node(path))
    answer = read_keys(served.qmp)
    assert (answer.status, answer.data) == (0, KEYS)
    assert register(served.qmp).status == 0
    assert [(request.cdb, request.data, request.disk) for request in helper.requests] == [
        (pr_in(READ_KEYS), b'', identity(path)),
        (pr_out(REGISTER), out_list(service_key=0x1234), identity(path)),
    ]
    assert helper.accepted == 1
    assert state(served.qmp) == {'p': True}


def test_ten_byte_cdb_and_short_answer(daemon, tmp, fake):
    fake(answering(lambda peer, request: peer.reply(payload=KEYS[:12])))
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    answer = execute(served.qmp, pr_in(READ_KEYS)[:10])
    assert (answer.status, answer.data) == (0, KEYS[:12])


def test_status_and_sense_are_passed_on(daemon, tmp, fake):
    long_sense = bytes([0x72, 5, 0x26, 0]) + bytes(range(4, 96))
    replies = [(0x18, b''), (0x08, b''), (2, long_sense)]

    def answer(peer, request):
        status, sense_data = replies.pop(0)
        peer.reply(status, sense_data=sense_data)

    fake(answering(answer))
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    assert register(served.qmp).status == 0x18
    assert register(served.qmp).status == 0x08
    result = served.qmp.cmd_args('x-granary-pr-execute', arguments(pr_out(REGISTER), out_list(), 'n'))
    assert result == {'status': 2, 'sense': long_sense.hex(), 'data': ''}


def test_through_raw_but_not_through_a_window(daemon, tmp, fake):
    fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    served.blockdev_add(driver='raw', node_name='r', file='n')
    served.blockdev_add(driver='raw', node_name='rr', file='r')
    served.blockdev_add(driver='raw', node_name='offset', file='n', offset=512)
    served.blockdev_add(driver='raw', node_name='size', file='n', size=512)
    served.blockdev_add(driver='null-co', node_name='null', size=512)
    served.blockdev_add(driver='file', node_name='without', filename=str(disk(tmp, 'other')))
    assert read_keys(served.qmp, 'r').data == KEYS
    assert read_keys(served.qmp, 'rr').data == KEYS
    for node in ('offset', 'size', 'null', 'without'):
        error = served.qmp.error('x-granary-pr-execute', **arguments(pr_in(READ_KEYS), b'', node))
        assert f"Node '{node}' carries no reservation commands out" in error.desc
        assert 'pr-manager' in error.desc


def test_a_read_only_node_sends(daemon, tmp, fake):
    """Whether its descriptor is enough is the helper's decision."""
    helper = fake()
    path = disk(tmp)
    served = daemon(*manager(tmp), *file_node(path, more=',read-only=on'))
    assert read_keys(served.qmp).data == KEYS
    assert register(served.qmp).status == 0
    assert [request.disk for request in helper.requests] == [identity(path)] * 2


@pytest.mark.parametrize(
    'cdb, data',
    [
        (pr_in(READ_KEYS, 0), b''),
        (pr_in(READ_KEYS, 8193), b''),
        (pr_out(REGISTER, length=0), b''),
        (pr_out(REGISTER, length=25), out_list()),
        (bytes(16), b''),
        (b'\xff' + bytes(15), b''),
        (b'\x12\x00\x00\x00\x24' + bytes(11), b''),
    ],
)
def test_bad_requests_are_refused_without_traffic(cdb, data, daemon, tmp, fake):
    helper = fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    assert execute(served.qmp, cdb, data).check == INVALID_FIELD
    assert not helper.requests


@pytest.mark.parametrize(
    'wrong, text',
    [
        ({'cdb': '5e'}, "Parameter 'cdb' expects 10 to 16 bytes in hexadecimal"),
        ({'cdb': '5e' * 17}, "Parameter 'cdb' expects 10 to 16 bytes in hexadecimal"),
        ({'cdb': '5' * 21}, "Parameter 'cdb' expects 10 to 16 bytes in hexadecimal"),
        ({'cdb': '5g' * 10}, "Parameter 'cdb' has something else than hexadecimal digits"),
        ({'data': '00' * 8193}, "Parameter 'data' expects 0 to 8192 bytes in hexadecimal"),
        ({'node-name': 'nope'}, "Cannot find node 'nope'"),
    ],
)
def test_bad_arguments_of_the_command(wrong, text, daemon, tmp, fake):
    fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    given = {**arguments(pr_out(REGISTER), out_list(), 'n'), **wrong}
    assert served.qmp.error('x-granary-pr-execute', **given).desc == text


def test_several_disks_in_flight_and_more_wait(daemon, tmp, fake):
    """More commands than connections: each disk has its own connection, up to the limit; the rest follow."""
    limit, count = 16, 20
    release = threading.Event()

    def hold(peer, request):
        release.wait(DEADLINE)
        peer.reply(payload=KEYS)

    helper = fake(answering(hold))
    sessions = Sessions(tmp, count)
    nodes = [word for i in range(count) for word in file_node(disk(tmp, f'd{i}'), f'n{i}')]
    served = daemon(*sessions.args(), *manager(tmp), *nodes)
    clients = sessions.connect()
    pending = [begin(qmp, f'n{i}') for i, qmp in enumerate(clients)]
    helper.wait_requests(limit)
    served.cmd('query-version')
    assert (helper.accepted, len(helper.requests)) == (limit, limit)
    release.set()
    for qmp, ident in zip(clients, pending):
        assert end(qmp, ident).data == KEYS
    helper.wait_connections(1)
    assert sorted(request.disk for request in helper.requests) == sorted(
        identity(tmp / f'd{i}.img') for i in range(count)
    )
    assert changes(served.qmp) == []


def test_commands_of_one_disk_keep_their_order(daemon, tmp, fake):
    inside, most = [], []

    def slowly(peer, request):
        inside.append(request)
        most.append(len(inside))
        time.sleep(0.02)  # room for a second one
        inside.remove(request)
        peer.reply(payload=KEYS)

    fake(answering(slowly))
    sessions = Sessions(tmp, 4)
    daemon(*sessions.args(), *manager(tmp), *file_node(disk(tmp)))
    clients = sessions.connect()
    pending = [begin(qmp) for qmp in clients]
    assert all(end(qmp, ident).data == KEYS for qmp, ident in zip(clients, pending))
    assert most == [1, 1, 1, 1]


def test_a_node_in_an_iothread(daemon, tmp, fake):
    fake()
    served = daemon(
        '--object',
        'iothread,id=t',
        *manager(tmp),
        *file_node(disk(tmp)),
        '--blockdev',
        'raw,node-name=r,file=n',
        nbd=True,
    )
    served.export('r', iothread='t', writable=True)
    assert read_keys(served.qmp, 'r').data == KEYS
    assert register(served.qmp, 'r').status == 0
    assert read_keys(served.qmp, 'n').data == KEYS


def test_a_hanging_command_does_not_hold_the_graph(daemon, tmp, fake):
    helper = fake(never_answer)
    sessions = Sessions(tmp, 1)
    served = daemon(
        *sessions.args(), '--object', 'iothread,id=t', *manager(tmp), *file_node(disk(tmp)), nbd=True
    )
    begin(sessions.connect()[0])
    helper.wait_requests(1)
    served.export('n', writable=True)
    served.cmd('query-blockstats', query_nodes=True)
    served.unexport('exp-n')
    assert 'in use' in served.qmp.error('blockdev-del', node_name='n').desc


# ---- Making the object ----


def test_no_helper(daemon, tmp):
    with pytest.raises(StartError) as failure:
        daemon(*manager(tmp))
    assert f"Failed to connect to '{tmp / 'h.sock'}': No such file or directory" in failure.value.stderr


@pytest.mark.parametrize('script', [refuse, lambda peer: peer.send(b'\0\0')], ids=['none', 'half'])
def test_the_connection_ends_instead_of_a_hello(script, daemon, tmp, fake):
    fake(script)
    with pytest.raises(StartError) as failure:
        daemon(*manager(tmp))
    assert f"Failed to connect to '{tmp / 'h.sock'}': Connection refused" in failure.value.stderr


@pytest.mark.parametrize('script', [never_hello, half_hello])
def test_no_hello_comes(script, daemon, tmp, fake):
    fake(script)
    begun = time.monotonic()
    with pytest.raises(StartError) as failure:
        daemon(*manager(tmp))
    assert time.monotonic() - begun < 15
    assert 'no reservation helper greets there' in failure.value.stderr


def test_signal_while_it_waits_for_the_hello(daemon, tmp, fake):
    helper = fake(never_hello)
    process = daemon.spawn(*manager(tmp))
    helper.wait_connections(1)
    process.signal()
    process.wait(0, 4)


def test_others_while_it_waits_for_the_hello(daemon, tmp, fake):
    """The id is taken, the object is not there yet, and cannot be deleted under its maker."""
    helper = fake(never_hello)
    sessions = Sessions(tmp, 1)
    served = daemon(*sessions.args())
    other = sessions.connect()[0]
    options = {'qom-type': 'pr-manager-helper', 'id': 'p', 'path': str(tmp / 'h.sock')}
    ident = other.send('object-add', options)
    helper.wait_connections(1)
    assert state(served.qmp) == {}
    assert served.qmp.error('object-del', id='p').desc == "object 'p' is in use, can not be deleted"
    error = served.qmp.error(
        'blockdev-add', driver='file', node_name='n', filename=str(disk(tmp)), pr_manager='p'
    )
    assert error.desc == "No persistent reservation manager with id 'p'"
    assert 'attempt to add duplicate' in served.qmp.error('object-add', **options).desc
    helper.stop()
    assert 'Failed to connect' in other.reply_to(ident)['error']['desc']
    assert changes(served.qmp) == []
    fake()
    served.cmd('object-add', **options)
    assert changes(served.qmp) == [True]


def test_features_that_we_do_not_know(daemon, tmp, fake):
    """Only what is known is asked for."""
    asked = []

    def script(peer):
        peer.hello(features=0xFFFFFFFE)
        asked.append(peer.features)
        peer.read(1)  # stays until the test is over

    fake(script)
    daemon(*manager(tmp))
    wait_until(lambda: asked, 'the hello')
    assert asked[0] == 0


def test_start_without_a_helper(daemon, tmp, fake):
    served = daemon(*manager(tmp, connect='off'), *file_node(disk(tmp)))
    assert state(served.qmp) == {'p': False}
    fake()
    wait_change(served.qmp, True)
    assert state(served.qmp) == {'p': True}
    assert read_keys(served.qmp).data == KEYS
    assert changes(served.qmp) == []


def test_a_command_finds_the_helper_at_once(daemon, tmp, fake):
    """It does not wait for the next attempt in the background."""
    served = daemon(*manager(tmp, connect='off'), *file_node(disk(tmp)))
    helper = fake()
    assert read_keys(served.qmp).data == KEYS
    assert state(served.qmp) == {'p': True}
    assert helper.accepted == 1
    wait_change(served.qmp, True)
    assert changes(served.qmp) == []


def test_object_add_tells_of_the_connection_once(daemon, tmp, fake):
    fake()
    served = daemon()
    served.cmd('object-add', qom_type='pr-manager-helper', id='p', path=str(tmp / 'h.sock'))
    assert changes(served.qmp) == [True]
    assert served.cmd('qom-get', path='/objects/p', property='path') == str(tmp / 'h.sock')


def test_deadline_must_be_positive(daemon, tmp):
    with pytest.raises(StartError) as failure:
        daemon(*manager(tmp, deadline=0))
    assert "Parameter 'deadline' expects at least 1 second" in failure.value.stderr


# ---- The end of helpers ----


def test_helper_that_dies_idle_is_noticed_at_once(daemon, tmp, fake):
    helper = fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    assert state(served.qmp) == {'p': True}
    helper.stop()
    wait_change(served.qmp, False)
    assert state(served.qmp) == {'p': False}
    fake()
    wait_change(served.qmp, True)
    assert state(served.qmp) == {'p': True}
    assert read_keys(served.qmp).data == KEYS
    assert changes(served.qmp) == []


def test_helper_that_comes_and_goes(daemon, tmp, fake):
    helper = fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    for _ in range(5):
        helper.stop()
        wait_change(served.qmp, False)
        helper = fake()
        assert read_keys(served.qmp).data == KEYS
        wait_change(served.qmp, True)
    assert changes(served.qmp) == []


def test_helper_that_dies_with_the_command(daemon, tmp, fake):
    """Nobody knows whether it was executed: the guest is told to look and try again."""
    helper = fake(never_answer)
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    ident = begin(served.qmp)
    helper.wait_requests(1)
    helper.stop()
    assert end(served.qmp, ident).check == SENT
    wait_change(served.qmp, False)
    fake()
    assert register(served.qmp).status == 0
    wait_change(served.qmp, True)
    assert changes(served.qmp) == []


def test_all_in_flight_fail_when_the_helper_dies(daemon, tmp, fake):
    helper = fake(never_answer)
    sessions = Sessions(tmp, 4)
    nodes = [word for i in range(4) for word in file_node(disk(tmp, f'd{i}'), f'n{i}')]
    served = daemon(*sessions.args(), *manager(tmp), *nodes)
    clients = sessions.connect()
    pending = [begin(qmp, f'n{i}') for i, qmp in enumerate(clients)]
    helper.wait_requests(4)
    assert helper.accepted == 4
    helper.stop()
    assert [end(qmp, ident).check for qmp, ident in zip(clients, pending)] == [SENT] * 4
    wait_change(served.qmp, False)
    assert changes(served.qmp) == []


def test_command_without_a_helper(daemon, tmp, fake):
    """Five attempts, a second apart, as the reference."""
    helper = fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    helper.stop()
    begun = time.monotonic()
    assert register(served.qmp).check == NEVER_SENT
    assert 3.9 < time.monotonic() - begun < 30
    wait_change(served.qmp, False)
    assert changes(served.qmp) == []
    assert state(served.qmp) == {'p': False}


def test_helper_that_comes_back_during_the_attempts(daemon, tmp, fake):
    helper = fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    helper.stop()
    wait_change(served.qmp, False)
    ident = begin(served.qmp)
    fake()
    assert end(served.qmp, ident).data == KEYS
    wait_change(served.qmp, True)


def test_the_deadline_ends_the_attempts(daemon, tmp, fake):
    helper = fake()
    served = daemon(*manager(tmp, deadline=2), *file_node(disk(tmp)))
    helper.stop()
    begun = time.monotonic()
    assert register(served.qmp).check == NEVER_SENT
    assert time.monotonic() - begun < 3.9


# ---- Wrong answers ----


def send_then_close(*parts):
    def answer(peer, request):
        for part in parts:
            peer.send(part)
        raise PeerGone('enough')

    return answer


def replying(**reply):
    return lambda peer, request: peer.reply(**reply)


def header(status, size):
    return struct.pack('>II', status, size) + bytes(96)


@pytest.mark.parametrize(
    'cdb, answer',
    [
        pytest.param(cdb, answer, id=name.replace(' ', '-'))
        for name, cdb, answer in [
            ('closes', pr_in(READ_KEYS), send_then_close()),
            ('half a header', pr_in(READ_KEYS), send_then_close(header(0, 24)[:50])),
            ('half a payload', pr_in(READ_KEYS), send_then_close(header(0, 24), KEYS[:10])),
            ('more than was asked for', pr_in(READ_KEYS, 16), replying(payload=KEYS)),
            ('a huge size', pr_in(READ_KEYS), replying(size=0xFFFFFFFF)),
            ('more than the protocol has', pr_in(READ_KEYS, 8192), replying(payload=bytes(8193))),
            ('payload for OUT', pr_out(REGISTER), replying(payload=b'x')),
            ('payload with a conflict', pr_in(READ_KEYS), replying(status=0x18, payload=b'x')),
            ('a status of nine bits', pr_in(READ_KEYS), replying(status=0x118)),
            ('a status of 32 bits', pr_out(REGISTER), replying(status=0xFFFFFF00)),
        ]
    ],
)
def test_wrong_answers(cdb, answer, daemon, tmp, fake):
    """The command fails so that it is tried again, the connection is given up, the next one works."""
    helper = fake(answering(answer))
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    assert execute(served.qmp, cdb, out_list() if cdb[0] != IN else b'').check == SENT
    helper.script = good
    wait_change(served.qmp, False)
    assert read_keys(served.qmp).data == KEYS
    wait_change(served.qmp, True)
    assert changes(served.qmp) == []
    assert state(served.qmp) == {'p': True}
    helper.disconnect()
    wait_change(served.qmp, False)


def test_an_answer_that_nobody_asked_for(daemon, tmp, fake):
    """It must not become the answer to the next command."""

    def script(peer):
        peer.hello()
        go.wait(DEADLINE)
        peer.reply(status=0x18)
        peer.hang()

    go = threading.Event()
    helper = fake(script)
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    helper.script = good
    go.set()
    wait_change(served.qmp, False)
    assert read_keys(served.qmp).data == KEYS
    wait_change(served.qmp, True)


def test_an_answer_byte_by_byte(daemon, tmp, fake):
    fake(answering(replying(payload=KEYS, piece=1)))
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    assert read_keys(served.qmp).data == KEYS


# ---- Time ----


def test_deadline(daemon, tmp, fake):
    """The command fails, the helper has not: nobody is told that it has gone."""
    helper = fake(never_answer)
    served = daemon(*manager(tmp, deadline=1), *file_node(disk(tmp)))
    helper.script = good
    begun = time.monotonic()
    assert register(served.qmp).check == SENT
    assert 0.9 < time.monotonic() - begun < 20
    assert register(served.qmp).status == 0
    helper.wait_connections(1)
    assert changes(served.qmp) == []
    assert state(served.qmp) == {'p': True}
    helper.stop()  # the new connection is watched as the first was
    wait_change(served.qmp, False)


def test_deadline_of_a_stopped_helper(daemon, tmp, fake):
    """One that does not even greet any more has gone, for all that anybody can tell."""
    helper = fake(never_answer)
    served = daemon(*manager(tmp, deadline=1), *file_node(disk(tmp)))
    helper.script = never_hello
    assert register(served.qmp).check == SENT
    assert register(served.qmp).check == NEVER_SENT
    wait_change(served.qmp, False)
    assert changes(served.qmp) == []


def test_a_hanging_disk_delays_no_other(daemon, tmp, fake):
    paths = {'slow': disk(tmp, 'slow'), 'fast': disk(tmp, 'fast')}

    def answer(peer, request):
        if request.disk == identity(paths['slow']):
            peer.hang()
        peer.reply(payload=KEYS)

    helper = fake(answering(answer))
    sessions = Sessions(tmp, 1)
    served = daemon(
        *sessions.args(), *manager(tmp), *file_node(paths['slow'], 'slow'), *file_node(paths['fast'], 'fast')
    )
    begin(sessions.connect()[0], 'slow')
    helper.wait_requests(1)
    for _ in range(5):
        assert read_keys(served.qmp, 'fast').data == KEYS


@pytest.mark.parametrize('how', ['signal', 'quit'])
@pytest.mark.parametrize('iothread', [False, True], ids=['main', 'iothread'])
def test_shutdown_does_not_wait_for_the_helper(how, iothread, daemon, tmp, fake):
    helper = fake(never_answer)
    sessions = Sessions(tmp, 3)
    nodes = [*file_node(disk(tmp, 'a'), 'a'), *file_node(disk(tmp, 'b'), 'b')]
    served = daemon(*sessions.args(), '--object', 'iothread,id=t', *manager(tmp), *nodes, nbd=True)
    if iothread:
        served.export('a', iothread='t')
    clients = sessions.connect()
    begin(clients[0], 'a')
    begin(clients[1], 'b')
    helper.wait_requests(2)
    begin(clients[2], 'a')  # waits for its turn
    begun = time.monotonic()
    if how == 'signal':
        served.signal()
    else:
        served.cmd('quit')
    served.wait(0, 10)
    assert time.monotonic() - begun < 2


def test_shutdown_during_the_attempts(daemon, tmp, fake):
    helper = fake()
    sessions = Sessions(tmp, 1)
    served = daemon(*sessions.args(), *manager(tmp), *file_node(disk(tmp)))
    helper.stop()
    wait_change(served.qmp, False)
    begin(sessions.connect()[0])
    begun = time.monotonic()
    served.stop()
    assert time.monotonic() - begun < 2


# ---- object-del ----


def test_deleted_while_in_use(daemon, tmp, fake):
    """The node keeps its manager; nobody else sees it any more, and its name is free."""
    helper, other = fake(), fake(name='other.sock')
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    served.cmd('object-del', id='p')
    assert state(served.qmp) == {}
    assert read_keys(served.qmp).data == KEYS
    served.cmd('object-add', qom_type='pr-manager-helper', id='p', path=str(tmp / 'other.sock'))
    assert changes(served.qmp) == [True]
    served.qmp.events.clear()
    helper.stop()
    assert register(served.qmp).check == NEVER_SENT
    assert changes(served.qmp) == []
    assert state(served.qmp) == {'p': True}
    served.cmd('blockdev-del', node_name='n')
    assert (other.accepted, other.requests) == (1, [])


def test_deleted_with_a_command_in_flight(daemon, tmp, fake):
    release = threading.Event()

    def answer(peer, request):
        release.wait(DEADLINE)
        peer.reply(payload=KEYS)

    helper = fake(answering(answer))
    sessions = Sessions(tmp, 1)
    served = daemon(*sessions.args(), *manager(tmp), *file_node(disk(tmp)))
    client = sessions.connect()[0]
    ident = begin(client)
    helper.wait_requests(1)
    served.cmd('object-del', id='p')
    release.set()
    assert end(client, ident).data == KEYS


def test_the_connection_goes_with_the_last_user(daemon, tmp, fake):
    helper = fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    served.cmd('object-del', id='p')
    served.cmd('blockdev-del', node_name='n')
    helper.wait_connections(0)


def test_names_of_nodes_do_not_show_the_manager(daemon, tmp, fake):
    fake()
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    served.blockdev_add(driver='raw', node_name='r', file='n')
    assert {node['file'] for node in served.cmd('query-named-block-nodes')} == {str(tmp / 'disk.img')}


def test_idle_costs_nothing(daemon, tmp, fake):
    fake()
    served = daemon(*manager(tmp), *manager(tmp, 'q', 'missing.sock', connect='off'), *file_node(disk(tmp)))
    assert read_keys(served.qmp).data == KEYS
    before = served.cpu_seconds()
    time.sleep(1)  # the time is what is measured
    assert served.cpu_seconds() - before < 0.1


# ---- Without a helper ----


def test_kernel_manager(daemon, tmp):
    """On a file there is nothing to reserve, and every answer says so."""
    served = daemon('--object', 'pr-manager-kernel,id=k', *file_node(disk(tmp), pr_manager='k'))
    assert state(served.qmp) == {'k': True}
    assert read_keys(served.qmp).check == NOT_HERE
    assert register(served.qmp).check == NOT_HERE
    assert execute(served.qmp, pr_in(READ_KEYS, 0)).check == INVALID_FIELD
    served.cmd('object-del', id='k')
    assert state(served.qmp) == {}
    assert read_keys(served.qmp).check == NOT_HERE
    assert changes(served.qmp, 'k') == []


# ---- Real helpers ----


@pytest.fixture
def real(tmp):
    started = []

    def factory(binary):
        started.append(PrHelper(tmp, binary))
        started[-1].path = tmp / 'h.sock'
        return started[-1].start()

    yield factory
    for one in started:
        one.cleanup()


def test_reference_helpers(daemon, tmp, real):
    """What the kernel says to a file comes through; a restart is noticed."""
    need_root('the reference helper must be able to drop privileges')
    found = peers.pr_helpers()
    if not found:
        pytest.skip('missing package qemu-system-common (program qemu-pr-helper)')
    nodes = [*file_node(disk(tmp)), *file_node(disk(tmp, 'ro'), 'r', more=',read-only=on')]
    for binary in found:
        helper = real(binary)
        served = daemon(*manager(tmp), *nodes)
        assert read_keys(served.qmp).check == NEVER_SENT  # its own b/00/06
        assert register(served.qmp).check == NEVER_SENT
        assert register(served.qmp, 'r').check == NOT_HERE
        helper.stop()
        wait_change(served.qmp, False)
        helper = real(binary)
        assert read_keys(served.qmp).check == NEVER_SENT
        wait_change(served.qmp, True)
        assert changes(served.qmp) == []
        served.stop()
        helper.stop()


def test_our_helper(daemon, tmp, real):
    if not os.access(BINARY, os.X_OK):
        pytest.skip(f'not built: {BINARY}')
    helper = real(BINARY)
    served = daemon(*manager(tmp), *file_node(disk(tmp)))
    assert read_keys(served.qmp).check == NOT_HERE
    assert register(served.qmp).check == NOT_HERE
    helper.stop()
    wait_change(served.qmp, False)
