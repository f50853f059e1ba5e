# SPDX-License-Identifier: Apache-2.0
"""Sends the same thing to two programs and makes their answers comparable.

A case is data (see tests/differential/). Each program runs in a directory of its own that holds the same files, and is
addressed by relative paths, so that answers can be compared as they are; what must differ (time stamps, versions,
process ids, generated node names) is replaced by a fixed word.
"""

import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, field

import pytest

from lib import nbdwire, peers
from lib.daemon import Daemon
from lib.program import StartError
from lib.qmp import DEADLINE, Qmp, QmpClosed, dashed
from lib.tools import wait_until

SWALLOWED = '(no answer: the parser waits for more)'
SWALLOW_SECONDS = 1.0


@dataclass
class Qmps:
    """QMP lines on one connection: a dict is a command, bytes are sent as they are, a tuple waits for an event, a text
    waits until the program's error messages contain it."""

    name: str
    lines: list
    args: list = field(default_factory=list)
    negotiate: bool = True
    v10: bool = False  # 7.2 answers differently: compare only with 10


@dataclass
class Cli:
    """A command line, and QMP commands that are sent if it starts."""

    name: str
    args: list
    then: list = field(default_factory=list)
    v10: bool = False


@dataclass
class Nbd:
    """Steps on one NBD connection: see nbd_step; ('qmp', command) is one on the monitor."""

    name: str
    steps: list
    args: list = field(default_factory=list)
    v10: bool = False


@dataclass
class Allowed:
    """A difference that is wanted, with the reason. `check(ours, theirs)` says whether ours is the intended answer."""

    case: str  # the case's name as a regular expression
    reason: str
    check: object


def q(execute, **arguments):
    """A command, for the lines of a case."""
    return {'execute': execute, 'arguments': dashed(arguments)}


class Peer:
    """A program and how to start it."""

    def __init__(self, binary, environment=None):
        self.binary = str(binary)
        self.environment = environment or {}

    def options(self):
        """For the fixture `daemon`, or Daemon()."""
        return {'binary': self.binary, 'environment': self.environment}

    @functools.cached_property
    def major(self):
        env = dict(os.environ, **self.environment)
        text = subprocess.run(
            [self.binary, '--version'], capture_output=True, env=env, check=True
        ).stdout.decode()
        return int(re.search(r'version (\d+)', text).group(1))

    def need_10(self):
        """Skips the test, naming the package, where an older version answers differently."""
        if self.major < 10:
            pytest.skip('missing package qemu-utils from bookworm-backports (the reference 10 answers this)')


def reference():
    """The reference daemon, or a skip that names its package."""
    path, modules = peers.storage_daemon()
    if not path:
        pytest.skip('missing package qemu-system-common (program qemu-storage-daemon)')
    return Peer(path, {'QEMU_MODULE_DIR': modules} if modules else {})


def make_files(directory):
    """The files that every case may use."""
    pattern = b''.join(struct.pack('>I', i) for i in range(65536))
    (directory / 'raw.img').write_bytes(pattern * 4)
    (directory / 'small.img').write_bytes(b'x' * 1000)
    (directory / 'empty.img').write_bytes(b'')
    with open(directory / 'sparse.img', 'wb') as sparse:
        sparse.truncate(4 << 20)
        sparse.seek(1 << 20)
        sparse.write(b'd' * 65536)
    (directory / 'secret.txt').write_text('letmein')
    (directory / 'garbage.qcow2').write_bytes(b'QFI\xfb' + b'\xff' * 65532)
    quiet = {'stdout': subprocess.DEVNULL, 'check': True, 'cwd': directory}
    create = ['qemu-img', 'create', '-q', '-f', 'qcow2']
    subprocess.run([*create, 'empty.qcow2', '1M'], **quiet)
    subprocess.run([*create, '-o', 'compat=0.10', 'v2.qcow2', '1M'], **quiet)
    aes = ['--object', 'secret,id=s,data=one', '-o', 'encrypt.format=aes,encrypt.key-secret=s']
    subprocess.run([*create, *aes, 'aes.qcow2', '1M'], **quiet)
    subprocess.run(['qemu-img', 'convert', '-O', 'qcow2', 'sparse.img', 'data.qcow2'], **quiet)
    subprocess.run([*create, '-b', 'data.qcow2', '-F', 'qcow2', 'top.qcow2'], **quiet)
    subprocess.run([*create, '-b', 'missing.qcow2', '-F', 'qcow2', '-u', 'orphan.qcow2', '1M'], **quiet)


class Arena:
    """Directories with the files, copied from one template for each run."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.count = 0
        (self.directory / 't').mkdir()
        make_files(self.directory / 't')

    def fresh(self):
        self.count += 1
        path = self.directory / f'{self.count}'
        shutil.copytree(self.directory / 't', path)
        return path


# Members of the elements of lists without an order of their own: character devices, commands, types, properties.
UNORDERED = {
    'label',
    'filename',
    'frontend-open',
    'name',
    'parent',
    'abstract',
    'type',
    'description',
    'default-value',
}


def sort_json_name(match):
    """A node's name of the form json:{...} with its members in a fixed order."""
    return 'json:' + json.dumps(json.loads(match.group(1)), sort_keys=True)


def normalise_graph(graph):
    """x-debug-query-block-graph without its arbitrary numbers and orders."""
    names = {node['id']: f"{node['type']}:{node['name']}" for node in graph['nodes']}
    edges = [
        {
            **edge,
            'parent': names[edge['parent']],
            'child': names[edge['child']],
            'perm': sorted(edge['perm']),
            'shared-perm': sorted(edge['shared-perm']),
        }
        for edge in graph['edges']
    ]
    return {
        'nodes': sorted(normalise(list(names.values()))),
        'edges': sorted(normalise(edges), key=lambda edge: json.dumps(edge, sort_keys=True)),
    }


def normalise(value):
    """Replaces what must differ between two runs; works on any nesting of lists and dictionaries."""
    if isinstance(value, dict) and set(value) == {'nodes', 'edges'}:
        try:
            return normalise_graph(value)
        except (KeyError, TypeError):
            pass  # already normalised
    if isinstance(value, dict):
        result = {}
        for key, item in value.items():
            if key == 'timestamp' and isinstance(item, dict):
                continue
            if key == 'qemu' and isinstance(item, dict) and 'micro' in item:
                item = 'VERSION'
            if key == 'package':
                item = 'PACKAGE'
            if key in ('iters', 'master-key-iters') or (key == 'uuid' and 'slots' in value):
                item = 'RANDOM'  # of a LUKS volume
            if 'vm-clock-nsec' in value and re.match('(date|vm-clock)-n?sec', key):
                item = 'TIME'
            result[key] = normalise(item)
        return result
    if isinstance(value, (list, tuple)):
        items = [normalise(item) for item in value]
        for key in ('label', 'name'):  # these lists come in the order of a hash table
            if len(items) > 1 and all(
                isinstance(item, dict) and key in item and set(item) <= UNORDERED for item in items
            ):
                return sorted(items, key=lambda item: item[key])
        return items
    if isinstance(value, bytes):
        value = value.decode('latin-1')
    if isinstance(value, str):
        value = re.sub(r'#block\d+', '#block', value)
        try:
            value = re.sub(r'^json:(\{.*\})$', sort_json_name, value)
        except ValueError:
            pass  # something else that only looks like it
        value = re.sub(r'(?<=["\'/ =:])/tmp/[^"\' ,]*/', '', value)
        value = re.sub(r'^/tmp/.*/', '', value)
        value = re.sub(r'/[^\s:]*/qemu-storage-daemon', 'qemu-storage-daemon', value)
        value = re.sub(r'/dev/pts/\d+', '/dev/pts/N', value)
    return value


class Run:
    """One program in one directory for one case."""

    def __init__(self, peer, directory):
        self.daemon = Daemon(directory, peer.binary, peer.environment)
        self.qmp = None

    def start(self, args, nbd=False):
        """Starts with a monitor in front; True when it has read all options, False when the program ended."""
        directory = self.daemon.directory
        front = ['--pidfile', 'pid']
        if nbd:
            front += ['--nbd-server', 'addr.type=unix,addr.path=nbd.sock']
        monitor = self.daemon.spawn_with_monitor(*front, *args)
        pidfile = [
            value
            for option, value in zip(['--pidfile'] + args, ['pid'] + args[1:] + [''])
            if option == '--pidfile'
        ][-1]
        try:
            self.daemon.wait_ready(directory / pidfile)
        except StartError:
            return False
        self.qmp = Qmp.over(monitor, negotiate=False)
        return True

    def end(self):
        """Ends the program; its exit status and messages are part of the answers."""
        if self.daemon.running():
            self.daemon.signal()
        try:
            code = self.daemon.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            code = 'does not end'
        if self.qmp:
            self.qmp.close()
        return {'exit': code, 'stdout': self.daemon.stdout(), 'stderr': self.daemon.stderr()}

    def qmp_line(self, number, line):
        """Sends one line; returns the answers to it. Events are collected by the session."""
        qmp = self.qmp
        if isinstance(line, tuple):
            qmp.wait_event(line[0], **(line[1] if len(line) > 1 else {}))
            return ['event came']
        if isinstance(line, str):
            wait_until(lambda: line in self.daemon.stderr(), f'the message {line!r}')
            return ['message came']
        ident = f'line-{number}'
        try:
            if isinstance(line, dict):
                qmp.send_raw(json.dumps({'id': ident, **line}).encode() + b'\n')
                return self.until(ident if 'id' not in line else line['id'], DEADLINE)
            qmp.send_raw(
                line + b'\n' + json.dumps({'execute': 'query-version', 'id': ident}).encode() + b'\n'
            )
            return self.until(ident, SWALLOW_SECONDS)
        except (BrokenPipeError, ConnectionResetError):
            return ['connection closed']

    def is_working(self):
        """A thread of the program runs or wants to: it is slow, not silent."""
        tasks = pathlib.Path(f'/proc/{self.daemon.process.pid}/task').iterdir()
        return any((task / 'stat').read_text().rpartition(')')[2].split()[0] == 'R' for task in tasks)

    def until(self, ident, timeout):
        answers = []
        end = time.monotonic() + DEADLINE
        while True:
            try:
                raw = self.qmp.read_line(timeout)
            except TimeoutError:
                if self.is_working() and time.monotonic() < end:
                    continue
                return answers + [SWALLOWED]
            if raw is None:
                return answers + ['connection closed']
            try:
                message = json.loads(raw)
            except ValueError:
                answers.append(raw)
                continue
            except RecursionError:  # deeper than this reader can: compare the text
                answers.append(raw.strip())
                continue
            if 'event' in message:
                self.qmp.events.append(message)
                continue
            if 'QMP' in message:  # see Qmp.reply_to
                continue
            answers.append(message)
            if message.get('id') == ident:
                return answers


def run_qmp(peer, directory, case):
    run = Run(peer, directory)
    answers = []
    if run.start(case.args):
        answers.append(('greeting', [run.qmp.greeting]))
        if case.negotiate:
            run.qmp.cmd('qmp_capabilities')
        for number, line in enumerate(case.lines):
            try:
                got = run.qmp_line(number, line)
            except (TimeoutError, QmpClosed) as error:
                got = [f'{type(error).__name__}: {error}']
            answers.append((f'line {number}: {line}', got))
            if got and got[-1] in (SWALLOWED, 'connection closed'):
                break
        if case.lines[-1] == {'execute': 'quit'}:
            run.qmp.drain()
        answers.append(('events', [run.qmp.events]))
    answers.append(('end', [run.end()]))
    return normalise(answers)


def run_cli(peer, directory, case):
    run = Run(peer, directory)
    answers = []
    started = run.start(case.args)
    if started:
        run.qmp.cmd('qmp_capabilities')
    answers.append(('started', [started]))
    if started:
        for number, line in enumerate(case.then):
            answers.append((f'line {number}: {line}', run.qmp_line(number, line)))
    answers.append(('end', [run.end()]))
    return normalise(answers)


def digest(part):
    """Long data by its length and hash."""
    if isinstance(part, bytes) and len(part) > 256:
        return f'{len(part)} bytes, sha256 {hashlib.sha256(part).hexdigest()}'
    return part


def contents(pieces):
    """What a structured read has read, however it is split into data and holes."""
    data = b''
    for _, _, kind, _, payload in sorted(pieces, key=lambda piece: piece[4][:8]):
        data += payload[8:] if kind == nbdwire.CHUNK_DATA else bytes(struct.unpack('>I', payload[8:12])[0])
    return hashlib.sha256(data).hexdigest()


def nbd_step(wire, step):
    """('flags', n) greets; ('opt', number, payload[, header fields]); ('raw', bytes); ('req', command, offset, length,
    flags, payload); ('reply',) reads an answer to raw bytes; ('ext',) asks for extended headers; ('closed',) expects
    nothing more than the end."""
    kind, *rest = step
    if kind == 'flags':
        return [wire.greeting(rest[0])]
    if kind == 'opt':
        option, payload, *fields = rest
        return [
            (nbdwire.REP_NAMES.get(k, k), data)
            for k, data in wire.option(option, payload, **(fields[0] if fields else {}))
        ]
    if kind == 'export-name':
        wire.send_option(nbdwire.OPT_EXPORT_NAME, rest[0])
        return [wire.recv(rest[1])]
    if kind == 'raw':
        wire.send(rest[0])
        return ['sent']
    if kind == 'req':
        command, offset, length, *more = rest
        pieces = wire.request(command, offset, length, *more)
        answer = [[digest(part) for part in piece] for piece in pieces]
        if command == nbdwire.CMD_READ and all(
            piece[0] == 'chunk' and piece[2] in (1, 2) for piece in pieces
        ):
            answer.insert(0, ['contents', contents(pieces)])
        return answer
    if kind == 'reply':
        return [wire.reply()]
    if kind == 'badmagic':
        wire.send_request(nbdwire.CMD_READ, 0, 512, magic=0x12345678)
        return [wire.at_eof()]
    if kind == 'ext':
        wire.extended_headers()
        return ['extended']
    assert kind == 'closed', kind
    return [wire.at_eof()]


def run_nbd(peer, directory, case):
    run = Run(peer, directory)
    answers = []
    if run.start(case.args, nbd=True):
        run.qmp.cmd('qmp_capabilities')
        with nbdwire.Wire(directory / 'nbd.sock', timeout=15) as wire:
            for number, step in enumerate(case.steps):
                try:
                    got = run.qmp_line(number, step[1]) if step[0] == 'qmp' else nbd_step(wire, step)
                except nbdwire.Closed:
                    got = ['connection closed']
                except socket.timeout:
                    got = ['no answer in time']
                answers.append((f'step {number}: {step}', got))
                if got in (['connection closed'], ['no answer in time']):
                    break
    # what a server writes about misbehaving clients to its log is for people: only the exit status is compared
    answers.append(('end', [run.end()['exit']]))
    return normalise(answers)


RUNNERS = {Qmps: run_qmp, Cli: run_cli, Nbd: run_nbd}


def exchanges(case):
    """How many things a case sends."""
    if isinstance(case, Cli):
        return 1 + len(case.then)
    return len(case.lines if isinstance(case, Qmps) else case.steps)


def leaves(ours, theirs, path=''):
    """Where two values differ, one line for each smallest part."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(set(ours) | set(theirs)):
            if key not in ours or key not in theirs:
                yield f'{path}.{key}: {"only theirs" if key not in ours else "only ours"}: {(theirs if key not in ours else ours)[key]!r}'
            else:
                yield from leaves(ours[key], theirs[key], f'{path}.{key}')
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (one, other) in enumerate(zip(ours, theirs)):
            yield from leaves(one, other, f'{path}[{i}]')
    elif ours != theirs:
        yield f'{path}\n       ours:   {ours!r}\n       theirs: {theirs!r}'


def differences(ours, theirs):
    """The places where two answers differ, readable."""
    found = []
    for i in range(max(len(ours), len(theirs))):
        a = ours[i] if i < len(ours) else None
        b = theirs[i] if i < len(theirs) else None
        if a != b:
            found.append('\n    '.join([str((a or b)[0]), *leaves(a and a[1], b and b[1])]))
    return found
