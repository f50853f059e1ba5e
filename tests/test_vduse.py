# SPDX-License-Identifier: Apache-2.0
"""The export vduse-blk as far as it goes without the kernel's VDUSE: its options, and what is said where it is missing."""

import os

import pytest

from lib.program import StartError
from lib.qmp import QmpError

pytestmark = pytest.mark.sanitize
NODE = ('--blockdev', 'null-co,node-name=n,read-zeroes=on')
REFUSED = (
    ({}, "Parameter 'name' is missing"),
    ({'name': 'x', 'num-queues': 0}, 'num-queues must be greater than 0'),
    ({'name': 'x', 'num-queues': 1025}, 'num-queues must not be greater than 1024'),
    ({'name': 'x', 'num-queues': 65536}, "Parameter 'num-queues' expects uint16_t"),
    ({'name': 'x', 'queue-size': 0}, 'queue-size is invalid'),
    ({'name': 'x', 'queue-size': 2}, 'queue-size is invalid'),
    ({'name': 'x', 'queue-size': 48}, 'queue-size is invalid'),
    ({'name': 'x', 'queue-size': 2048}, 'queue-size is invalid'),
    *(
        (
            {'name': 'x', 'logical-block-size': size},
            'parameter logical-block-size must be a power of 2 between 512 and 2097152',
        )
        for size in (0, 256, 513, 4 << 20)
    ),
    ({'name': 'x', 'allow-inactive': True}, 'Export type does not support inactive exports'),
    *(
        ({'name': name}, f"failed to create vduse device: '{name}' cannot be the name of a vduse device")
        for name in ('', '..', 'a/b', 'control', 'x' * 256)
    ),
)
MISSING = 'failed to create vduse device: Failed to open /dev/vduse/control: No such file or directory'


def export(served, **options):
    served.qmp.cmd_args('block-export-add', {'type': 'vduse-blk', 'id': 'e', 'node-name': 'n', **options})


def without_vduse():
    if os.path.exists('/dev/vduse/control'):
        pytest.skip('this machine has VDUSE')


def test_options_that_are_refused(daemon):
    served = daemon(*NODE)
    for options, text in REFUSED:
        with pytest.raises(QmpError) as caught:
            export(served, **options)
        assert caught.value.desc.startswith(text), options
    assert served.cmd('query-block-exports') == []
    served.cmd('blockdev-del', node_name='n')


def test_kernel_without_vduse(daemon):
    without_vduse()
    served = daemon(*NODE)
    for options in (
        {},
        {'num-queues': 1024, 'queue-size': 1024},
        {'queue-size': 4},
        {'serial': 's' * 30, 'writable': True},
    ):
        with pytest.raises(QmpError) as caught:
            export(served, name='x', **options)
        assert MISSING in str(caught.value), options
    assert served.cmd('query-block-exports') == []


def test_command_line_says_what_is_missing(daemon):
    without_vduse()
    with pytest.raises(StartError) as caught:
        daemon(*NODE, '--export', 'vduse-blk,id=e,node-name=n,name=x')
    said = str(caught.value)
    assert f'--export vduse-blk,id=e,node-name=n,name=x: {MISSING}\n' in said
    assert 'modprobe vduse' in said
