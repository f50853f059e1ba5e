# SPDX-License-Identifier: Apache-2.0
"""Writes initramfs archives (the "newc" format of cpio): programs with libraries, kernel modules, Python.

Nothing is copied to a staging folder, no privilege is needed, and the same input gives the same bytes.
"""

import lzma
import os
import pathlib
import py_compile
import re
import stat
import subprocess
import sys
import sysconfig
import tempfile

from lib.debian import Unavailable

MERGED = ('bin', 'sbin', 'lib', 'lib64')
# Parts of the standard library that no scenario imports, because of their size.
NO_PYTHON = """
    __pycache__ asyncio curses dbm dist-packages distutils email ensurepip html http idlelib lib-dynload
    lib2to3 msilib multiprocessing pydoc_data site-packages sqlite3 test tests tkinter turtledemo unittest
    venv wsgiref xml xmlrpc zoneinfo
""".split()
PYTHON_EXTENSIONS = """
    _ctypes _json _queue mmap resource termios _posixsubprocess _struct array fcntl _socket select math
    binascii zlib _random _sha512 _sha256 _sha1 _md5 _blake2 _bisect _heapq _datetime _opcode _pickle
    _contextvars _statistics unicodedata
""".split()


def normal(path):
    """A guest path without the leading slash, /lib and such being links to /usr/lib and such."""
    parts = pathlib.PurePosixPath(os.path.normpath(str(path))).parts
    parts = parts[1:] if parts[:1] == ('/',) else parts
    return '/'.join(('usr', *parts) if len(parts) > 1 and parts[0] in MERGED else parts)


class Initramfs:
    """Collects entries; write() makes the archive. A path that was added first stays.

    `below` are the paths of an archive that is unpacked before this one: its libraries are not added again.
    """

    def __init__(self, below=()):
        self._entries = {}  # path -> (mode, content: bytes, or pathlib.Path to read it from)
        self._below = frozenset(below)

    def paths(self):
        return sorted(self._entries)

    def folder(self, path):
        path = normal(path)
        if path and path not in self._entries:
            self.folder(os.path.dirname(path))
            self._entries[path] = (stat.S_IFDIR | 0o755, b'')

    def _put(self, path, mode, content):
        path = normal(path)
        if path not in self._entries:
            self.folder(os.path.dirname(path))
            self._entries[path] = (mode, content)

    def text(self, path, content, executable=False):
        data = content.encode() if isinstance(content, str) else content
        self._put(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, path, target):
        self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def has(self, path):
        return normal(path) in self._entries

    def file(self, source, path=None):
        """A file or a folder of the host, by default at the same path; links are followed."""
        source = pathlib.Path(source)
        if source.is_dir():
            self.folder(path or source)
            for entry in sorted(source.iterdir()):
                self.file(entry, f'{path or source}/{entry.name}')
            return
        try:
            executable = source.stat().st_mode & 0o111
        except OSError as error:
            raise Unavailable(f'no file {source} to copy into the guest') from error
        self._put(path or source, stat.S_IFREG | (0o755 if executable else 0o644), source)

    def program(self, source, path=None, root=None):
        """A program or shared object with the libraries it needs, of an unpacked `root` or of the host."""
        self.file(source, path or (f'/{pathlib.Path(source).relative_to(root)}' if root else None))
        for library in shared_libraries(source, root):
            inside = root is not None and library.is_relative_to(root)
            target = f'/{library.relative_to(root)}' if inside else str(library)
            if normal(target) not in self._below:
                self.file(library, target)

    def write(self, output):
        for number, (path, (mode, content)) in enumerate(sorted(self._entries.items()), start=1):
            data = content.read_bytes() if isinstance(content, pathlib.Path) else content
            _write_entry(output, number, path, mode, data)
        _write_entry(output, 0, 'TRAILER!!!', 0, b'')
        output.write(bytes(-output.tell() % 512))


def _write_entry(output, number, path, mode, data):
    name = path.encode() + b'\0'
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    output.write(b'070701' + b''.join(b'%08x' % field for field in fields) + name)
    output.write(bytes(-(110 + len(name)) % 4))
    output.write(data)
    output.write(bytes(-len(data) % 4))


def shared_libraries(program, root=None):
    """Paths of the libraries and the loader of a program, as the loader (of `root`, if any) finds them."""
    folders = [root / 'usr/lib/x86_64-linux-gnu', root / 'usr/lib'] if root else []
    environment, command = dict(os.environ, LC_ALL='C'), ['ldd', str(program)]
    loader = root / 'usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2' if root else None
    if loader and loader.exists():
        command = [str(loader), '--library-path', ':'.join(map(str, folders)), '--list', str(program)]
    elif root:
        environment['LD_LIBRARY_PATH'] = ':'.join(map(str, folders))
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    missing = re.findall(r'^\s*(\S+) => not found', done.stdout, re.MULTILINE)
    if missing:
        raise Unavailable(f'no shared library {missing[0]} for {program}')
    found = re.findall(r'(/\S+) \(0x', done.stdout)
    if loader and loader.exists():
        found.append(str(loader))
    return [pathlib.Path(path) for path in found]


def add_python(archive):
    """The interpreter that runs this, with most of its library, compiled."""
    interpreter = os.path.realpath(sys.executable)
    archive.program(interpreter)
    if not archive.has('/usr/bin/python3'):
        archive.link('/usr/bin/python3', interpreter)
    library = pathlib.Path(sysconfig.get_path('stdlib'))
    with tempfile.NamedTemporaryFile(suffix='.pyc') as compiled:
        for source in sorted(library.rglob('*.py')):
            inside = source.relative_to(library)
            if set(NO_PYTHON).intersection(inside.parts) or inside.parts[0].startswith('config-'):
                continue
            py_compile.compile(
                source,
                compiled.name,
                str(inside),
                True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
            archive.text(source.with_suffix('.pyc'), pathlib.Path(compiled.name).read_bytes())
    for name in PYTHON_EXTENSIONS:
        for source in (library / 'lib-dynload').glob(f'{name}.*.so'):
            archive.program(source)


class Modules:
    """Kernel modules below a folder, with their dependencies as they say themselves."""

    def __init__(self, tree):
        self._tree = tree
        self._files = {}
        for path in (tree / 'kernel').rglob('*.ko*'):
            self._files[path.name.partition('.')[0].replace('-', '_')] = path
        self._loaded = {}  # name -> (file name in the tree, content, dependencies)
        self._aliases = []

    def add(self, name):
        """False if the kernel has no such module (it may be built in)."""
        name = name.replace('-', '_')
        if name in self._loaded:
            return True
        if name not in self._files:
            return False
        path = self._files[name]
        content = lzma.decompress(path.read_bytes()) if path.suffix == '.xz' else path.read_bytes()
        said = re.findall(rb'\0(depends|alias|softdep)=([^\0]*)', content)
        wanted = []
        for key, value in said:
            words = value.decode(errors='replace')
            if key == b'depends':
                wanted += [word.replace('-', '_') for word in words.split(',') if word]
            elif key == b'softdep' and words.startswith('pre:'):
                wanted += [word.replace('-', '_') for word in words[4:].split(' post:')[0].split()]
            elif key == b'alias':
                self._aliases.append(f'alias {words} {name}')
        inside = str(path.relative_to(self._tree)).partition('.ko')[0] + '.ko'
        self._loaded[name] = (inside, content, wanted)
        for other in wanted:
            self.add(other)
        return True

    def _closure(self, name, order):
        """Names in an order in which they can be loaded; the last is `name` itself."""
        for other in self._loaded[name][2]:
            if other in self._loaded and other not in order:
                self._closure(other, order)
        order.append(name)
        return order

    def write_to(self, archive, release):
        """Adds the modules, uncompressed, with the tables that busybox's modprobe reads."""
        top = f'/lib/modules/{release}'
        lines = []
        for name, (inside, content, _) in sorted(self._loaded.items()):
            archive.text(f'{top}/{inside}', content)
            others = [self._loaded[other][0] for other in reversed(self._closure(name, [])[:-1])]
            lines.append(f'{inside}: {" ".join(others)}'.rstrip())
        archive.text(f'{top}/modules.dep', '\n'.join(lines) + '\n')
        archive.text(f'{top}/modules.alias', '\n'.join(sorted(self._aliases)) + '\n')
        archive.text(f'{top}/modules.symbols', '')
        builtin = self._tree / 'modules.builtin'
        archive.text(f'{top}/modules.builtin', builtin.read_bytes() if builtin.exists() else '')
