#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`make run`: makes a qcow2 image with a file system in it, serves it over NBD, and says what to try."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
SIZE = 64 << 20
WELCOME = """This file lies in an ext4 file system, in a qcow2 image, served by granaryd over NBD.
Read it with:  qemu-img convert or nbdcopy, then debugfs; or mount the copy through a loop device.
"""


class Session:
    """Just enough QMP to make an image and export it."""

    def __init__(self, path, process):
        end = time.monotonic() + 30
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.sock.connect(str(path))
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit('granaryd did not start')
                time.sleep(0.01)
        self.file = self.sock.makefile('rw')
        json.loads(self.file.readline())
        self.command('qmp_capabilities')

    def command(self, execute, **arguments):
        self.file.write(
            json.dumps(
                {'execute': execute, 'arguments': {k.replace('_', '-'): v for k, v in arguments.items()}}
            )
            + '\n'
        )
        self.file.flush()
        while True:
            message = json.loads(self.file.readline())
            if 'error' in message:
                sys.exit(f'{execute}: {message["error"]["desc"]}')
            if 'return' in message:
                return message['return']

    def create(self, **options):
        self.command(
            'blockdev-create', job_id='create', options={k.replace('_', '-'): v for k, v in options.items()}
        )
        while True:
            job = self.command('query-jobs')[0]
            if job['status'] == 'concluded':
                break
            time.sleep(0.01)
        self.command('job-dismiss', id='create')
        if 'error' in job:
            sys.exit(f'blockdev-create: {job["error"]}')


def make_file_system(raw):
    """An ext4 file system with a text and the project's documents in it."""
    content = raw.with_suffix('.content')
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    (content / 'WELCOME.txt').write_text(WELCOME)
    for document in [*TOP.glob('*.md'), TOP / 'LICENSE']:
        shutil.copy(document, content)
    with open(raw, 'wb') as file:
        file.truncate(SIZE)
    subprocess.run(['mke2fs', '-q', '-F', '-t', 'ext4', '-L', 'granary', '-d', content, raw], check=True)
    shutil.rmtree(content)


def fill(raw, uri):
    """Copies the file system in through the daemon itself."""
    subprocess.run(['nbdcopy', '--destination-is-zero', raw, uri], check=True)
    raw.unlink()


def advice(image, nbd, qmp):
    uri = f"'nbd+unix:///disk?socket={nbd}'"
    command = '{"execute":"qmp_capabilities"} {"execute":"query-block-exports"}'
    print(
        f"""
{image} is being served. Try, in another terminal:

  nbdinfo {uri}
  nbdinfo --map {uri}
  nbdcopy --progress {uri} copy.img && debugfs -R 'cat WELCOME.txt' copy.img
  qemu-img convert -p -O raw {uri} copy.img
  qemu-io -f raw -c 'read -v 1024 256' {uri}
  echo '{command}' | socat -t1 - UNIX-CONNECT:{qmp}

Ctrl-C ends it.
""",
        flush=True,
    )


def main():
    build = (TOP / (sys.argv[1] if len(sys.argv) > 1 else 'build')).resolve()
    directory = build / 'run'
    directory.mkdir(exist_ok=True)
    image, nbd, qmp = directory / 'disk.qcow2', directory / 'nbd.sock', directory / 'qmp.sock'
    qmp.unlink(missing_ok=True)
    fresh = not image.exists()
    process = subprocess.Popen(
        [
            build / 'src' / 'programs' / 'granaryd',
            '--chardev',
            f'socket,id=qmp,path={qmp},server=on,wait=off',
            '--monitor',
            'chardev=qmp',
            '--nbd-server',
            f'addr.type=unix,addr.path={nbd}',
        ]
    )
    try:
        session = Session(qmp, process)
        if fresh:
            session.create(driver='file', filename=str(image), size=0)
        session.command('blockdev-add', driver='file', node_name='file', filename=str(image), discard='unmap')
        if fresh:
            session.create(driver='qcow2', file='file', size=SIZE)
        session.command('blockdev-add', driver='qcow2', node_name='disk', file='file', discard='unmap')
        session.command('block-export-add', type='nbd', id='export', node_name='disk', writable=True)
        if fresh:
            raw = directory / 'content.raw'
            make_file_system(raw)
            fill(raw, f'nbd+unix:///disk?socket={nbd}')
        session.sock.close()
        advice(os.path.relpath(image), nbd, qmp)
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        return process.wait()
    except BaseException:
        if fresh:
            image.unlink(missing_ok=True)  # half made
        process.terminate()
        process.wait()
        raise


if __name__ == '__main__':
    sys.exit(main())
