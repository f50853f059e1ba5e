# SPDX-License-Identifier: Apache-2.0
"""The documents name things that exist."""

import re

import pytest

from lib.tools import TOP


def test_threat_classes_name_real_tests():
    """Every test and fuzz target in docs/threat-classes.md exists."""
    text = (TOP / 'docs' / 'threat-classes.md').read_text()
    sources = {path.name: path.read_text() for path in (TOP / 'tests').glob('test_*.py')}
    for name in set(re.findall(r'`(test_\w+\.py)', text)):
        assert name in sources, name
    for name in set(re.findall(r'\b(test_\w+)`', text)):
        assert any(f'def {name}(' in source for source in sources.values()), name
    registered = ' '.join(path.read_text() for path in (TOP / 'src').rglob('meson.build'))
    for row in text.splitlines():
        cells = row.strip('|').split('|')
        if len(cells) >= 4 and 'fuzz targets' not in row:
            for target in re.findall(r'`([\w-]+)`', cells[-1]):
                assert f"'{target}'" in registered, f'no fuzz target {target}'


@pytest.mark.parametrize('document', ['README.md', 'ARCHITECTURE.md', 'HACKING.md', 'docs/threat-classes.md'])
def test_paths_in_documents_exist(document):
    text = (TOP / document).read_text()
    for name in set(re.findall(r'`((?:src|tests|tools|docs|schema)/[\w./-]+)`', text)) | set(
        re.findall(r'\]\(([\w./-]+)\)', text)
    ):
        if 'X' in name or 'TARGET' in name:
            continue
        assert (TOP / name).exists() or (TOP / 'src' / name).exists(), f'{document} names {name}'


def test_licence_is_whole():
    text = (TOP / 'LICENSE').read_text()
    assert (
        'Apache License' in text
        and 'Version 2.0, January 2004' in text
        and 'END OF TERMS AND CONDITIONS' in text
    )
