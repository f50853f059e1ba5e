# SPDX-License-Identifier: Apache-2.0
"""A QMP client for tests: every wait has a deadline, every event is kept in the order of arrival."""

import json
import socket
import time

from lib.program import DEADLINE


def dashed(options):
    """Options by the names that QMP has for them: with dashes, where Python has underscores."""
    return {name.replace('_', '-'): value for name, value in options.items()}


class QmpError(Exception):
    """The daemon answered a command with an error."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.error_class = error['class']
        self.desc = error['desc']


class QmpClosed(Exception):
    """The connection ended while something was still expected."""


class Qmp:
    """One QMP session over a connected socket (or any pair of file objects with a socket's interface)."""

    def __init__(self, sock, negotiate=True):
        self.sock = sock
        self.buffer = b''
        self.closed = False
        self.events = []
        self.lines = []  # every raw line that came, for tests of the exact text
        self.next_id = 0
        self.greeting = self.read_message()
        self.greetings = 1
        if negotiate:
            self.cmd('qmp_capabilities')

    @classmethod
    def connect(cls, path, negotiate=True, deadline=DEADLINE):
        """Connects to a unix socket path, waiting until somebody listens there."""
        end = time.monotonic() + deadline
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(str(path))
                return cls(sock, negotiate)
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)

    @classmethod
    def over(cls, sock, deadline=DEADLINE, negotiate=True):
        """A session over a socket whose other end a program has inherited."""
        sock.settimeout(deadline)
        return cls(sock, negotiate)

    def close(self):
        self.sock.close()

    def send_raw(self, data):
        self.sock.sendall(data)

    def read_line(self, timeout=DEADLINE):
        """The next line without its end, or None at the end of the stream. TimeoutError when none comes."""
        end = time.monotonic() + timeout
        while b'\n' not in self.buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError('no QMP line in time')
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                data = b''
            except socket.timeout:
                raise TimeoutError('no QMP line in time') from None
            if not data:
                self.closed = True
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b'\n', 1)
        self.lines.append(line)
        return line

    def read_message(self, timeout=DEADLINE):
        line = self.read_line(timeout)
        if line is None:
            raise QmpClosed('the QMP connection was closed')
        return json.loads(line)

    def send(self, execute, arguments=None):
        """Sends a command and returns its id."""
        self.next_id += 1
        command = {'execute': execute, 'id': self.next_id}
        if arguments is not None:
            command['arguments'] = arguments
        self.send_raw(json.dumps(command).encode() + b'\n')
        return self.next_id

    def reply_to(self, ident, timeout=DEADLINE):
        """The reply with this id; events that come first are kept."""
        end = time.monotonic() + timeout
        while True:
            message = self.read_message(max(0.001, end - time.monotonic()))
            if 'event' in message:
                self.events.append(message)
            elif (
                'QMP' in message
            ):  # the reference sometimes greets twice when the client came before the monitor
                self.greetings += 1
            elif message.get('id') == ident:
                return message
            else:
                raise AssertionError(f'unexpected reply {message}')

    def cmd(self, execute, timeout=DEADLINE, **arguments):
        """Runs a command; underscores in keyword names stand for dashes. Returns the result or raises QmpError."""
        return self.cmd_args(execute, dashed(arguments) or None, timeout)

    def cmd_args(self, execute, arguments=None, timeout=DEADLINE):
        reply = self.reply_to(self.send(execute, arguments), timeout)
        if 'error' in reply:
            raise QmpError(reply['error'])
        return reply['return']

    def error(self, execute, **arguments):
        """Runs a command that has to fail; returns the QmpError."""
        try:
            result = self.cmd(execute, **arguments)
        except QmpError as error:
            return error
        raise AssertionError(f'{execute} succeeded: {result}')

    def wait_event(self, name, timeout=DEADLINE, **data):
        """Removes and returns the first event with this name and these data members, waiting for it if need be."""

        def matches(event):
            return event['event'] == name and all(event.get('data', {}).get(k) == v for k, v in data.items())

        end = time.monotonic() + timeout
        while True:
            for i, event in enumerate(self.events):
                if matches(event):
                    return self.events.pop(i)
            message = self.read_message(max(0.001, end - time.monotonic()))
            assert 'event' in message, message
            self.events.append(message)

    def drain(self, timeout=DEADLINE):
        """Reads everything until the daemon closes the connection; returns all events of the session not yet taken."""
        while True:
            try:
                message = self.read_message(timeout)
            except QmpClosed:
                return self.events
            if 'event' in message:
                self.events.append(message)

    def run_job(self, ident, command, **arguments):
        """Starts a job, waits until it has concluded, dismisses it. Raises QmpError with the job's error."""
        self.cmd(command, job_id=ident, **arguments)
        self.wait_event('JOB_STATUS_CHANGE', id=ident, status='concluded')
        job = next(j for j in self.cmd('query-jobs') if j['id'] == ident)
        self.cmd('job-dismiss', id=ident)
        self.wait_event('JOB_STATUS_CHANGE', id=ident, status='null')
        if 'error' in job:
            raise QmpError({'class': 'GenericError', 'desc': job['error']})
