#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the fuzz targets with clang, ASan and UBSan and runs each for a while over its corpus.

fuzz.py BUILDDIR [TARGET...] [--seconds N]. Seeds come from tests/corpus/TARGET/ (inputs that were worth keeping) and from
tools/corpus.py; what a run finds new is kept in BUILDDIR/corpus/TARGET/, a crashing input in BUILDDIR/findings/. One line a target: `pass NAME`, `fail NAME: input file`.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parents[1]
# Inputs that are a few instructions each.
LARGEST = {'qcow2-edits': 99, 'qcow2-bitmap-edits': 99}


def build(directory):
    env = dict(os.environ, CC='clang')
    if not (directory / 'build.ninja').exists():
        subprocess.run(
            [
                'meson',
                'setup',
                '-Dfuzz=true',
                '-Dtests=false',
                '-Db_sanitize=address,undefined',
                '-Db_lundef=false',
                '-Doptimization=1',
                '-Dc_args=-fsanitize=fuzzer-no-link',
                directory,
            ],
            cwd=TOP,
            env=env,
            stdout=subprocess.DEVNULL,
            check=True,
        )
    done = subprocess.run(['ninja', '-C', directory], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout[-6000:])
        sys.exit(1)


def run(target, directory, seconds):
    """Runs one target; True when nothing was found."""
    name = target.name.removeprefix('fuzz-')
    corpus = directory / 'corpus' / name
    findings = directory / 'findings'
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    seeds = [
        folder for folder in (TOP / 'tests' / 'corpus' / name, directory / 'seeds' / name) if folder.is_dir()
    ]
    env = dict(
        os.environ,
        ASAN_OPTIONS='detect_stack_use_after_return=0:allocator_may_return_null=1',
        UBSAN_OPTIONS='print_stacktrace=1:halt_on_error=1',
    )
    done = subprocess.run(
        [
            target,
            f'-max_total_time={seconds}',
            '-timeout=10',
            # Outside bytes do not get much more memory than they have bytes, but for the tables that a format allows.
            '-rss_limit_mb=1024',
            '-malloc_limit_mb=256',
            f'-max_len={LARGEST.get(name, 65536)}',
            '-verbosity=0',
            '-close_fd_mask=2',  # what the code under test logs
            '-print_final_stats=1',
            f'-artifact_prefix={findings}/{name}-',
            corpus,
            *seeds,
        ],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        check=False,
    )
    stats = [
        line.split()[-1]
        for line in done.stdout.splitlines()
        if line.startswith('stat::number_of_executed_units')
    ]
    if done.returncode:
        print(done.stdout[-6000:])
        print(f'fail {name}: see {findings}', flush=True)
        return False
    print(f'pass {name}: {stats[0] if stats else "?"} inputs', flush=True)
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('directory')
    parser.add_argument('targets', nargs='*')
    parser.add_argument('--seconds', type=int, default=60)
    arguments = parser.parse_args()
    directory = (TOP / arguments.directory).resolve()
    if not shutil.which('clang'):
        print('skip all: missing package clang')
        return 0
    build(directory)
    subprocess.run([sys.executable, TOP / 'tools' / 'corpus.py', directory / 'seeds'], check=True)
    targets = sorted(
        path for path in directory.glob('tests/fuzz-*') if path.is_file() and os.access(path, os.X_OK)
    )
    if arguments.targets:
        targets = [target for target in targets if target.name.removeprefix('fuzz-') in arguments.targets]
    results = [run(target, directory, arguments.seconds) for target in targets]
    return 0 if all(results) and results else 1


if __name__ == '__main__':
    sys.exit(main())
