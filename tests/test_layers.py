# SPDX-License-Identifier: Apache-2.0
"""The floors of the source tree: includes only point down, and leaves never include each other."""

import re

from lib.tools import TOP

SRC = TOP / 'src'
# What each floor may use besides itself, base and the generated types; schema is there for everybody (see ARCHITECTURE.md).
FLOORS = {
    'base': set(),
    'schema': set(),
    'co': set(),
    'loop': {'co', 'schema'},
    'proto': {'schema'},
    'crypto': {'co', 'loop', 'proto', 'schema'},
    'net': {'co', 'loop', 'crypto', 'proto', 'schema'},
    'pr-device': {'proto'},
    'pr-client': {'proto'},
    'pr': {'co', 'loop', 'proto', 'pr-device', 'pr-client', 'schema'},
    'pr-helper': {'proto', 'pr-device'},
    'pr-tool': {'proto', 'pr-client'},
    'ctl': {'schema'},
    'block': {'co', 'loop', 'proto', 'schema'},
    'drivers': {'co', 'loop', 'net', 'proto', 'crypto', 'pr', 'block', 'schema'},
    'exports': {'co', 'loop', 'net', 'proto', 'crypto', 'block', 'virtio', 'schema'},
    'virtio': {'co', 'loop', 'proto', 'block', 'schema'},
    'jobs': {'co', 'loop', 'block', 'schema'},
    'chardev': {'co', 'loop', 'net', 'schema'},
    'monitor': {'co', 'loop', 'net', 'chardev', 'schema'},
    'daemon': {
        'co',
        'loop',
        'schema',
        'proto',
        'crypto',
        'net',
        'block',
        'drivers',
        'jobs',
        'exports',
        'chardev',
        'monitor',
        'pr',
    },
}
FLOORS['programs'] = FLOORS['daemon'] | {'daemon'}
LEAVES = {'drivers', 'exports', 'jobs'}
GENERATED_FOR_ALL = 'generated'
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def sources():
    return sorted(path for path in SRC.rglob('*.[ch]'))


def includes(path):
    return INCLUDE.findall(path.read_text())


def test_there_is_something_to_check():
    assert len(sources()) > 50


def test_every_folder_is_a_known_floor():
    folders = {path.relative_to(SRC).parts[0] for path in sources()}
    assert folders <= set(FLOORS) | {GENERATED_FOR_ALL}


def test_includes_carry_the_folder():
    for path in sources():
        for name in includes(path):
            assert '/' in name and not name.startswith('.'), f'{path.relative_to(SRC)} includes "{name}"'


def test_includes_only_point_down():
    wrong = []
    for path in sources():
        floor = path.relative_to(SRC).parts[0]
        for name in includes(path):
            target = name.split('/')[0]
            if target in (floor, 'base', GENERATED_FOR_ALL):
                continue
            if target not in FLOORS.get(floor, set()):
                wrong.append(f'{path.relative_to(SRC)} ({floor}) includes "{name}"')
    assert not wrong, '\n'.join(wrong)


def test_leaves_do_not_include_each_other():
    wrong = []
    for path in sources():
        parts = path.relative_to(SRC).parts
        if parts[0] not in LEAVES or len(parts) < 3:
            continue
        for name in includes(path):
            target = name.split('/')
            if target[0] in LEAVES and len(target) > 2 and target[:2] != list(parts[:2]):
                wrong.append(f'{path.relative_to(SRC)} includes "{name}"')
    assert not wrong, '\n'.join(wrong)


def test_private_headers_stay_in_their_folder():
    wrong = []
    for path in sources():
        folder = '/'.join(path.relative_to(SRC).parts[:-1])
        for name in includes(path):
            if name.endswith('-priv.h') and name.rsplit('/', 1)[0] != folder:
                wrong.append(f'{path.relative_to(SRC)} includes "{name}"')
    assert not wrong, '\n'.join(wrong)


def test_each_file_says_its_licence():
    for path in sources():
        assert 'SPDX-License-Identifier: Apache-2.0' in path.read_text()[:200], path
