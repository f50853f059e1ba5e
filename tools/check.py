#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`make check`: builds, runs every test there is, and ends with the line `N passed, N failed, N skipped`.

The steps: unit tests; system tests; unit tests and a part of the system tests with AddressSanitizer and UBSan; what runs
on several threads, built by clang with ThreadSanitizer; a short run of every fuzz target over its corpus. A step that cannot be built counts as one failed test, so that the rest still runs.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

TOP = pathlib.Path(__file__).resolve().parents[1]
JOBS = str(os.cpu_count() or 2)
SANITIZERS = {
    'ASAN_OPTIONS': 'detect_stack_use_after_return=0:detect_leaks=1:exitcode=99',
    'UBSAN_OPTIONS': 'print_stacktrace=1:halt_on_error=1:exitcode=99',
}
# What runs on several threads.
THREADED_UNIT_TESTS = ['co', 'loop', 'bitmap', 'bits', 'block', 'block-lanes', 'net', 'chardev', 'vduse', 'memory',
    'virtqueue-events', 'qcow2-away']
THREADED_SYSTEM_TESTS = (
    'test_bitmaps.py', 'test_concurrent_qcow2.py', 'test_fuse_threads.py', 'test_iothread.py', 'test_many_loops.py', 'test_reopen.py', 'test_vhost_user_loops.py')
THREAD_SANITIZER = {'TSAN_OPTIONS': 'exitcode=99'}


class Totals:
    """Counts, and names to report at the end."""

    def __init__(self):
        self.passed, self.failed, self.skipped = 0, [], []

    def add(self, name, result, why=''):
        if result == 'pass':
            self.passed += 1
        elif result == 'fail':
            self.failed.append(name)
        else:
            self.skipped.append(f'{name}: {why}')

    def report(self):
        for name in self.failed:
            print(f'FAILED  {name}')
        for line in self.skipped:
            print(f'SKIPPED {line}')
        print(f'{self.passed} passed, {len(self.failed)} failed, {len(self.skipped)} skipped', flush=True)
        return 1 if self.failed or not self.passed else 0


def say(text):
    print(f'== {text} [{time.strftime("%H:%M:%S")}]', flush=True)


def build(totals, directory, *options, environment=None):
    """Sets up and builds a tree; False (and one failed test) when that does not work."""
    say(f'build {directory.name}')
    env = dict(os.environ, **(environment or {}))
    if not (directory / 'build.ninja').exists():
        done = subprocess.run(
            ['meson', 'setup', *options, directory], cwd=TOP, env=env, stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            totals.add(f'{directory.name}: meson setup', 'fail')
            return False
    done = subprocess.run(
        ['ninja', '-j', JOBS, '-C', directory], env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-8000:])
        totals.add(f'{directory.name}: build', 'fail')
    return done.returncode == 0


def unit_tests(totals, directory, environment=None, names=()):
    say(f'unit tests of {directory.name}')
    log = directory / 'meson-logs' / 'testlog.json'
    log.unlink(missing_ok=True)
    subprocess.run(
        ['meson', 'test', '-C', directory, '--suite', 'unit', '--no-rebuild', '--print-errorlogs', '--quiet', *names],
        env=dict(os.environ, **(environment or {})),
        check=False,
    )
    results = {'OK': 'pass', 'EXPECTEDFAIL': 'pass', 'SKIP': 'skip'}
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for line in lines:
        totals.add(
            f'{directory.name}: {line["name"]}', results.get(line['result'], 'fail'), 'skipped by the test'
        )
    if not lines:
        totals.add(f'{directory.name}: unit tests', 'fail')


def system_tests(totals, directory, name, *arguments, environment=None):
    say(f'system tests: {name}')
    report = directory / f'system-{name}.xml'
    report.unlink(missing_ok=True)
    env = dict(
        os.environ,
        PYTHONDONTWRITEBYTECODE='1',
        GRANARY_DAEMON=str(directory / 'compat' / 'qemu-storage-daemon'),
        **(environment or {}),
    )
    command = ['/usr/bin/python3', '-m', 'pytest', '-q', '--tb=short', f'--junitxml={report}', *arguments]
    if (
        subprocess.run(
            ['/usr/bin/python3', '-c', 'import xdist'], stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    ):
        # By files: single tests are dealt in long runs, of which one has all the guests.
        command += ['-n', str(int(JOBS) + 1), '--dist', 'loadfile']
    done = subprocess.run(command, cwd=TOP / 'tests', env=env, check=False)
    cases = list(ElementTree.parse(report).iter('testcase')) if report.exists() else []
    for case in cases:
        label = f'{name}: {case.get("classname")}::{case.get("name")}'
        if case.find('failure') is not None or case.find('error') is not None:
            totals.add(label, 'fail')
        elif case.find('skipped') is not None:
            totals.add(label, 'skip', case.find('skipped').get('message', ''))
        else:
            totals.add(label, 'pass')
    if not cases or done.returncode not in (0, 1):
        totals.add(f'{name}: pytest ended with {done.returncode}', 'fail')


def fuzz_smoke(totals, directory):
    say('fuzz targets, briefly')
    done = subprocess.run(
        ['/usr/bin/python3', TOP / 'tools' / 'fuzz.py', directory, '--seconds', '5'],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        result, _, rest = line.partition(' ')
        if result in ('pass', 'fail', 'skip'):
            name, _, why = rest.partition(': ')
            totals.add(f'fuzz: {name}', result, why)
        else:
            print(line)
    if done.returncode and 'fail' not in done.stdout:
        totals.add('fuzz: build', 'fail')


def main():
    directory = (TOP / (sys.argv[1] if len(sys.argv) > 1 else 'build')).resolve()
    totals = Totals()
    if build(totals, directory):
        unit_tests(totals, directory)
        system_tests(totals, directory, 'all')
    sanitize = directory.with_name(directory.name + '-sanitize')
    if build(
        totals,
        sanitize,
        '-Db_sanitize=address,undefined',
        '-Db_lundef=false',
        '-Doptimization=1',
        '-Ddebug=true',
    ):
        unit_tests(totals, sanitize, SANITIZERS)
        system_tests(totals, sanitize, 'sanitize', '-m', 'sanitize', environment=SANITIZERS)
    threads = directory.with_name(directory.name + '-threads')
    options = ('-Db_sanitize=thread', '-Db_lundef=false', '-Doptimization=1', '-Ddebug=true')
    if build(totals, threads, *options, environment={'CC': 'clang'}):
        unit_tests(totals, threads, THREAD_SANITIZER, THREADED_UNIT_TESTS)
        system_tests(totals, threads, 'threads', *THREADED_SYSTEM_TESTS, environment=THREAD_SANITIZER)
    fuzz_smoke(totals, directory.with_name(directory.name + '-fuzz'))
    return totals.report()


if __name__ == '__main__':
    sys.exit(main())
