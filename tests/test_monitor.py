# SPDX-License-Identifier: Apache-2.0
"""The exact text of QMP: line ends, separators, key order, escapes; several monitors; introspection."""

import json
import socket

import pytest

from lib.daemon import monitor_at
from lib.qmp import Qmp

pytestmark = pytest.mark.sanitize


def raw(served, text):
    """Sends text, returns the next line with its end."""
    sock = served.qmp.sock
    sock.sendall(text.encode())
    data = b''
    while not data.endswith(b'\n'):
        data += sock.recv(1 << 16)
    return data


def test_exact_bytes(daemon):
    served = daemon()
    assert raw(served, '{"execute":"query-block"}') == b'{"return": []}\r\n'
    assert raw(served, '{"execute":"query-block","id":"x"}') == b'{"return": [], "id": "x"}\r\n'
    assert (
        raw(served, '{"execute":"nope","id":1}')
        == b'{"id": 1, "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}\r\n'
    )
    assert (
        raw(served, '{"execute":"query-block","id":"\\u00e9\\ud83d\\ude00\\u0001\\n\\"\\\\/"}')
        == b'{"return": [], "id": "\\u00E9\\uD83D\\uDE00\\u0001\\n\\"\\\\/"}\r\n'
    )
    assert (
        raw(served, '{"execute":"query-block","id":[1,2.5,-0,18446744073709551615,true,null,{"a":{}}]}')
        == b'{"return": [], "id": [1, 2.5, 0, 18446744073709551615, true, null, {"a": {}}]}\r\n'
    )
    assert (
        raw(served, '{"execute":"query-block","id":0.1}') == b'{"return": [], "id": 0.10000000000000001}\r\n'
    )


def test_event_text(daemon):
    served = daemon('--blockdev', 'null-co,node-name=n', '--export', 'nbd,id=e,node-name=n', nbd=True)
    served.unexport('e')
    line = next(line for line in served.qmp.lines if b'BLOCK_EXPORT_DELETED' in line)
    assert line.endswith(b'\r')
    event = json.loads(line)
    assert set(event) == {'timestamp', 'event', 'data'} and set(event['timestamp']) == {
        'seconds',
        'microseconds',
    }
    assert (
        line.startswith(b'{"timestamp": {"seconds": ')
        and b', "event": "BLOCK_EXPORT_DELETED", "data": {"id": "e"}}' in line
    )


def test_status_text_that_clients_search(daemon, tmp):
    """Some clients look for this text instead of parsing."""
    served = daemon()
    served.cmd(
        'blockdev-create', job_id='j', options={'driver': 'file', 'filename': str(tmp / 'x'), 'size': 1}
    )
    served.qmp.wait_event('JOB_STATUS_CHANGE', status='concluded')
    assert b'"status": "concluded"' in raw(served, '{"execute":"query-jobs"}')
    served.cmd('job-dismiss', id='j')


def test_pretty(daemon, tmp):
    daemon('--chardev', f'socket,id=c,path={tmp}/s,server=on,wait=off', '--monitor', 'chardev=c,pretty=on')
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(tmp / 's'))
    data = b''
    while data.count(b'{') != data.count(b'}') or not data.endswith(b'\n'):
        data += sock.recv(4096)
    assert data.startswith(b'{\r\n    "QMP": {\r\n        "version": {\r\n            "qemu": {\r\n')
    sock.sendall(b'{"execute":"qmp_capabilities","id":7}')
    data = b''
    while not data.endswith(b'}\r\n'):
        data += sock.recv(4096)
    assert data == b'{\r\n    "return": {\r\n    },\r\n    "id": 7\r\n}\r\n'


def test_events_reach_every_negotiated_monitor(daemon, tmp):
    served = daemon(
        *monitor_at(tmp / 'a', 'a'),
        *monitor_at(tmp / 'b', 'b'),
        '--blockdev',
        'null-co,node-name=n',
        '--export',
        'nbd,id=e,node-name=n',
        nbd=True,
    )
    second, silent = Qmp.connect(tmp / 'a'), Qmp.connect(tmp / 'b', negotiate=False)
    served.unexport('e')
    second.wait_event('BLOCK_EXPORT_DELETED', id='e')
    with pytest.raises(TimeoutError):
        silent.read_line(timeout=0.2)
    silent.cmd('qmp_capabilities')
    assert silent.events == []


def test_negotiation_is_reset_with_the_connection(daemon, tmp):
    served = daemon(*monitor_at(tmp / 'm'))
    served.reconnect(tmp / 'm')
    served.reconnect(tmp / 'm', negotiate=False)
    assert (
        served.qmp.error('query-block').desc == "Expecting capabilities negotiation with 'qmp_capabilities'"
    )
    served.cmd('qmp_capabilities')


@pytest.mark.better
def test_one_greeting_for_clients_that_come_early(daemon):
    """A client that connects before the daemon is up gets its greeting, and only one."""
    for _ in range(20):
        ours, theirs = socket.socketpair()
        served = daemon.spawn(
            '--chardev',
            f'socket,id=c,fd={theirs.fileno()}',
            '--monitor',
            'chardev=c',
            '--object',
            'iothread,id=t',
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        qmp = Qmp(ours)
        qmp.cmd('query-block')
        assert qmp.greetings == 1
        qmp.close()
        served.stop()


def test_introspection_is_whole(daemon):
    """query-qmp-schema describes every command of query-commands, and its references resolve."""
    served = daemon()
    schema = served.cmd('query-qmp-schema')
    entities = {entity['name']: entity for entity in schema}
    assert len(entities) == len(schema)
    commands = {command['name'] for command in served.cmd('query-commands')}
    assert commands == {entity['name'] for entity in schema if entity['meta-type'] == 'command'}
    assert {'BLOCK_EXPORT_DELETED', 'JOB_STATUS_CHANGE', 'BLOCK_IMAGE_CORRUPTED'} <= {
        entity['name'] for entity in schema if entity['meta-type'] == 'event'
    }
    for entity in schema:
        references = [entity.get('arg-type'), entity.get('ret-type'), entity.get('element-type')]
        references += [member['type'] for member in entity.get('members', []) if 'type' in member] + [
            variant['type'] for variant in entity.get('variants', [])
        ]
        for reference in references:
            assert reference is None or reference in entities, (entity['name'], reference)


def test_needed_commands_are_there(daemon):
    commands = {command['name'] for command in daemon().cmd('query-commands')}
    assert commands >= set(
        '''qmp_capabilities query-version query-commands query-qmp-schema quit object-add object-del qom-get qom-set qom-list qom-list-types
        qom-list-properties chardev-add chardev-remove query-chardev query-chardev-backends blockdev-add blockdev-del query-named-block-nodes query-block
        query-blockstats x-debug-query-block-graph blockdev-create query-jobs job-dismiss block-export-add block-export-del query-block-exports nbd-server-start
        nbd-server-stop nbd-server-add nbd-server-remove'''.split()
    )
