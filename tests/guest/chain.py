# SPDX-License-Identifier: Apache-2.0
"""Checks that build on each other: what follows a failure is skipped."""

from lab import Skip, check


def chain(subject, cases):
    """Makes of each case a check NAME-CASE that gets `subject`, with a name and an end(), in this order."""
    failed = []

    def add(case):
        def carry_out():
            if failed:
                raise Skip(f'{failed[0]} has failed')
            failed.append(case.__name__)
            try:
                case(subject)
                failed.pop()
            finally:
                if failed or case is cases[-1]:
                    subject.end()

        carry_out.__name__ = f'{subject.name}-{case.__name__}'
        check(carry_out)

    for case in cases:
        add(case)
