# SPDX-License-Identifier: Apache-2.0
"""The differences that are wanted. Each names its cases by a regular expression, says why, and rewrites the two answers
to what has to be equal nevertheless, so that everything else in the case is still compared.

NEEDS_10 names the cases that the reference 7.2 answers differently from 10, which is the one to agree with.
"""

import json

from lib.differential import Allowed

CASES = []
NEEDS_10 = (
    'cli-(equals|ok-all|blockdev-.*|object-25|chardev-4[0-3]|monitor-13|monitor-twice)|nbd-sizes|add-.*|node-names'
    '|common-options|two-writers|read-only-file|blockstats|create-file|create-qcow2|object-secret|qom-.*'
    '|query-commands|query-chardev-backends'
)


def expected(number, ours_is, theirs_is):
    """Checks the texts of both answers to a step (by its number among the answers) and takes the step out."""

    def check(ours, theirs):
        if (
            len(ours) > number
            and len(theirs) > number
            and ours_is in json.dumps(ours[number][1])
            and theirs_is in json.dumps(theirs[number][1])
        ):
            return ours[:number] + ours[number + 1 :], theirs[:number] + theirs[number + 1 :]
        return ours, theirs

    return check


def line(number, ours_is, theirs_is):
    """The same for a QMP line: the greeting is answer 0."""
    return expected(number + 1, json.dumps(ours_is)[1:-1], json.dumps(theirs_is)[1:-1])


def refused_instead(text):
    """The program does not start, with this message; the reference starts."""

    def check(ours, theirs):
        if (
            ours[0][1] == [False]
            and theirs[0][1] == [True]
            and text in ours[-1][1][0]['stderr']
            and ours[-1][1][0]['exit'] == 1
        ):
            return [], []
        return ours, theirs

    return check


def message_instead(ours_is, theirs_is):
    """Both refuse to start, with different texts."""

    def check(ours, theirs):
        ends = ours[-1][1][0], theirs[-1][1][0]
        if (
            ours_is in ends[0]['stderr']
            and theirs_is in ends[1]['stderr']
            and ends[0]['exit'] == ends[1]['exit'] == 1
        ):
            return [], []
        return ours, theirs

    return check


# What only Granary has; query-pr-managers and query-iothreads are in the reference's emulator, but not in its daemon.
ADDED = {
    'pr-manager-kernel',
    'query-iothreads',
    'query-pr-managers',
    'x-blockdev-check',
    'x-blockdev-snapshot-apply-internal',
    'x-granary-pr-execute',
}


def help_subset(ours, theirs):
    """Every line of our help is a line of theirs, but for what we have added."""
    lines = [
        {text for text in answers[-1][1][0]['stdout'].splitlines() if text.strip() not in ADDED}
        for answers in (ours, theirs)
    ]
    if lines[0] and lines[0] <= lines[1] and ours[-1][1][0]['exit'] == theirs[-1][1][0]['exit']:
        return [], []
    return ours, theirs


def named_subset(ours, theirs):
    """Lists of {name...}: each entry of ours is an entry of theirs, but for what we have added."""
    for i, (_, answer) in enumerate(ours):
        other = theirs[i][1] if i < len(theirs) else None
        for one, two in zip(answer, other or []):
            if (
                isinstance(one, dict)
                and isinstance(two, dict)
                and isinstance(one.get('return'), list)
                and all('name' in item for item in one['return'])
            ):
                known = {item['name']: item for item in two['return']}
                shared = [item for item in one['return'] if item['name'] not in ADDED]
                if shared and all(known.get(item['name']) == item for item in shared):
                    two['return'] = one['return']
    return ours, theirs


def same_contents(ours, theirs):
    """Takes out the shape of structured reads whose contents are the same."""
    for (what, one), (_, two) in zip(ours, theirs):
        if "('req', 0," in what and one and two and one[0] == two[0] and one[0][0] == 'contents':
            one[:] = two
    return ours, theirs


def without_sizes_of_files(ours, theirs):
    """What the host says about files; sizes of formats and filters stay."""

    def strip(value):
        if isinstance(value, dict):
            hidden = ('actual-size', 'virtual-size') if value.get('format') == 'file' else ('actual-size',)
            return {key: strip(item) for key, item in value.items() if key not in hidden}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(ours), strip(theirs)


def without(*names):
    """Takes members with these names out of everything."""

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in names}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return lambda ours, theirs: (strip(ours), strip(theirs))


LATER = 'Not part of Granary yet; a later issue adds it. Until then the option is refused with a clear text.'
ALLOWED = [
    Allowed(
        'query-commands|query-chardev-backends|qom-types',
        'Granary lists what it has; drivers, jobs and objects that later issues '
        'add are not there yet. What it lists is described as the reference describes it.',
        named_subset,
    ),
    Allowed(
        'cli-object-25|cli-chardev-40',
        'Help lists the types that exist; later issues add the others.',
        help_subset,
    ),
    Allowed(
        'cli-chardev-32', LATER + ' (websocket)', refused_instead("'websocket' protocol is not supported")
    ),
    Allowed('cli-chardev-38', LATER + ' (mux)', refused_instead("('mux') are not supported")),
    Allowed(
        'cli-chardev-45',
        LATER + ' (udp)',
        message_instead("type 'udp' are not supported", 'remote port not specified'),
    ),
    Allowed(
        'cli-chardev-46',
        LATER + ' (serial)',
        message_instead("type 'serial' are not supported", 'no device path given'),
    ),
    Allowed(
        'chardev-socket', LATER + ' (telnet)', line(20, "The 'telnet' protocol is not supported", 'return')
    ),
    Allowed(
        'cli-chardev-44',
        '--chardev takes JSON like the other options do: the reference has no such form (compatibility.md, 9.6).',
        lambda ours, theirs: ([], []) if ours[0][1] == [True] and theirs[0][1] == [False] else (ours, theirs),
    ),
    Allowed(
        'cli-chardev-twice',
        "The reference's text speaks of its internal tree of objects; ours says what is wrong.",
        message_instead("Chardev with id 'c' already exists", 'attempt to add duplicate property'),
    ),
    Allowed(
        'cli-trace-3',
        'The reference drops the last letter of an events file without a final newline.',
        lambda ours, theirs: ([], [])
        if 'letmein' in ours[-1][1][0]['stderr'] and 'letmei' in theirs[-1][1][0]['stderr']
        else (ours, theirs),
    ),
    Allowed(
        'add-arguments',
        'The schema lists the drivers that exist: one that does not is an unknown value, not an unknown driver.',
        line(17, "Parameter 'driver' does not accept value 'blkreplay'", "Unknown driver 'blkreplay'"),
    ),
    Allowed(
        'add-qcow2-bad',
        'the reference fails at its own lock first',
        line(16, 'No encryption in image header', 'Failed to get'),
    ),
    Allowed(
        'object-ids',
        'The emulator-only object types are known by name, their properties are not; the type is refused either way.',
        line(20, "Parameter 'size' is unexpected", 'invalid object type: memory-backend-ram'),
    ),
    Allowed(
        'cli-object-26',
        'The emulator-only object types are known by name, their properties are not; the type is refused either way.',
        message_instead("Parameter 'size' is unexpected", 'invalid object type: memory-backend-ram'),
    ),
    Allowed(
        'object-secret',
        'A secret must not leave the program through the monitor: its `data` can be set, not read. The reference hands it out.',
        lambda ours, theirs: expected(2, "Property 'secret.data' is not readable", '"return": "letmein"')(
            *expected(9, "Property 'secret.data' is not readable", '"return": ""')(ours, theirs)
        ),
    ),
    Allowed(
        'export-iothread',
        'An export may name a list of iothreads, as newer references have it.',
        line(6, "expected: BlockExportIothreads", "expected: string"),
    ),
    Allowed(
        'vhost-user-addresses',
        'A socket that was passed at the start can also be used by an export that is added later.',
        lambda ours, theirs: line(6, "File descriptor '77' is not a socket", 'only QEMU supports')(
            *line(7, 'Unable to parse FD number abc', 'only QEMU supports')(ours, theirs)
        ),
    ),
    Allowed(
        'blockstats',
        'Granary counts the requests that reach every node; the reference counts nothing in this program.',
        without('rd_bytes', 'rd_operations', 'rd_total_time_ns', 'idle_time_ns'),
    ),
    Allowed(
        'create-qcow2',
        'Where a new image puts its tables, and so the size of its file, is not part of the contract (a check finds both clean).',
        without('actual-size', 'virtual-size'),
    ),
    Allowed(
        'resize-below-filter',
        'Where an image puts its tables, and so the size of its file, is not part of the contract. '
        'The filter `compress` has the size of its child; in the reference it keeps the old one.',
        lambda ours, theirs: without_sizes_of_files(
            *expected(15, '"virtual-size": 3145728', '"virtual-size": 1048576')(ours, theirs)
        ),
    ),
    Allowed(
        'nbd-(null|qcow2|read-only)-requests|nbd-split-qcow2|nbd-extended-payload-flags|nbd-written-status',
        'A server may answer a structured read as data or '
        'as holes as it likes (NBD protocol, "Structured replies"). Granary does not look for holes before small reads: that would cost more than it saves.',
        same_contents,
    ),
    Allowed(
        'nbd-null-requests',
        'A null node zeroes as fast as anything can; the reference refuses fast zeroing there.',
        expected(32, '"simple", 0', 'writing to file failed'),
    ),
]
