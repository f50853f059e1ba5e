# SPDX-License-Identifier: Apache-2.0
"""A program under test: started in a directory, watched, and ended well. Only what a bare Python has."""

import os
import pathlib
import re
import subprocess
import time
from signal import SIGTERM

DEADLINE = float(os.environ.get('GRANARY_TEST_DEADLINE', '60'))
SANITIZER = re.compile(r'(ERROR|WARNING): \w*Sanitizer|runtime error:|AddressSanitizer|Assertion .* failed')


def wait_until(condition, what, deadline=DEADLINE):
    """Polls until condition() is true and returns its value."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f'waited {deadline:.0f} s in vain: {what}'
        time.sleep(0.003)


def cpu_seconds(pid):
    """User and system time of all threads so far."""
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def status(pid):
    """/proc/PID/status as a dictionary of texts."""
    text = pathlib.Path(f'/proc/{pid}/status').read_text()
    return {key: value.strip() for key, value in (line.split(':', 1) for line in text.splitlines())}


class StartError(Exception):
    """The program ended instead of becoming ready."""

    def __init__(self, program):
        self.exit_code = program.process.returncode
        self.stderr = program.stderr()
        super().__init__(f'exit {self.exit_code}: {self.stderr}')


class Program:
    """What all programs have in common; `letter` begins the names of its files."""

    letter = 'p'
    count = 0

    def __init__(self, directory, binary, environment=None):
        Program.count += 1
        self.directory = pathlib.Path(directory)
        self.binary = str(binary)
        self.name = f'{self.letter}{Program.count}'
        self.error_path = self.directory / f'{self.name}-stderr'
        self.output_path = self.directory / f'{self.name}-stdout'
        self.environment = dict(os.environ, **(environment or {}))
        self.process = None
        self.awaited = False  # its end has been expected and seen

    def command(self, *args):
        return [self.binary, *[str(a) for a in args]]

    def spawn(self, *args, prefix=(), pass_fds=(), **options):
        """Starts the program with exactly these arguments."""
        with open(self.error_path, 'wb') as err, open(self.output_path, 'wb') as out:
            self.process = subprocess.Popen(
                [*prefix, *self.command(*args)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.directory,
                env=self.environment,
                pass_fds=pass_fds,
                **options,
            )
        return self

    def wait_for(self, condition, what):
        """Waits for the sign that the program is ready; StartError when it ends before."""

        def ready():
            ended = self.process.poll() is not None
            if condition():
                return True
            if ended:
                raise StartError(self)
            return False

        wait_until(ready, what)

    def stderr(self):
        return self.error_path.read_text(errors='replace')

    def stdout(self):
        return self.output_path.read_text(errors='replace')

    def running(self):
        return self.process is not None and self.process.poll() is None

    def memory(self, what='VmRSS'):
        """Bytes that it has in memory now, or (VmHWM) had at most, or (RssAnon) without those of files."""
        return int(status(self.process.pid)[what].split()[0]) * 1024

    def signal(self, number=SIGTERM):
        self.process.send_signal(number)

    def wait(self, exit_code=0, timeout=DEADLINE):
        """Waits for the end and checks the exit status and that no sanitizer has spoken."""
        code = self.process.wait(timeout)
        self.awaited = True
        text = self.stderr()
        assert not SANITIZER.search(text), text
        assert code == exit_code, f'exit status {code}, not {exit_code}: {text}'

    def stop(self, number=SIGTERM, exit_code=0):
        """Orderly end by a signal."""
        if self.running():
            self.signal(number)
        self.wait(exit_code)

    def kill(self):
        """The end without mercy."""
        if self.running():
            self.process.kill()
        self.process.wait()
        self.awaited = True

    def cleanup(self):
        """End of a test: whatever still runs must end well."""
        if self.process is None:
            return
        if self.running():
            try:
                self.stop()
            finally:
                if self.running():
                    self.kill()
        elif not self.awaited:
            assert (
                self.process.returncode >= 0
            ), f'crashed with signal {-self.process.returncode}: {self.stderr()}'
        assert not SANITIZER.search(self.stderr()), self.stderr()
