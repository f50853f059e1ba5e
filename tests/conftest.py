# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every system test shares."""

import contextlib
import os
import pathlib
import random
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from lib import prhelper  # noqa: E402
from lib.daemon import BINARY, Daemon  # noqa: E402
from lib.tools import need_root  # noqa: E402
from lib.vhostuser import Guest  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line('markers', 'sanitize: also part of the short run against the ASan+UBSan build')
    config.addinivalue_line('markers', 'better: Granary goes further than the reference on purpose')
    config.addinivalue_line('markers', 'guest: takes a minute in a virtual machine')
    if not os.access(BINARY, os.X_OK):
        raise pytest.UsageError(f'{BINARY} is not built (GRANARY_DAEMON names another)')


@pytest.fixture
def tmp():
    """A directory with a short path, because socket paths are limited to 107 bytes."""
    path = pathlib.Path(tempfile.mkdtemp(prefix='gr-'))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def daemon(tmp):
    """A factory of daemons; all of them must end with status 0 and silent sanitizers when the test is over."""
    started = []

    def factory(*args, binary=BINARY, environment=None, **options):
        one = Daemon(tmp, binary, environment)
        started.append(one)
        return one.start(*args, **options)

    def spawn(*args, binary=BINARY, environment=None, **options):
        one = Daemon(tmp, binary, environment)
        started.append(one)
        return one.spawn(*args, **options)

    factory.spawn = spawn
    yield factory
    failures = []
    for one in started:
        try:
            one.cleanup()
        except (AssertionError, OSError) as error:
            failures.append(str(error))
        except Exception as error:  # a daemon that does not end: report it after the others were ended
            failures.append(repr(error))
    assert not failures, '\n'.join(failures)


@pytest.fixture
def rng(request):
    """Seeded random numbers; the seed is printed with a failure and can be given back in GRANARY_TEST_SEED."""
    seed = int(os.environ.get('GRANARY_TEST_SEED', '0')) or random.SystemRandom().randrange(1, 1 << 31)
    print(f'GRANARY_TEST_SEED={seed}')
    return random.Random(seed)


@pytest.fixture
def helpers(tmp):
    """A factory of reservation helpers; all of them must end with status 0 and silent sanitizers when the test is
    over."""
    need_root('a reservation helper starts with privileges')
    if not prhelper.may_run():
        pytest.skip('a reservation helper needs CAP_SYS_RAWIO, which is not to be had here')
    if not os.access(prhelper.BINARY, os.X_OK):
        pytest.fail(f'{prhelper.BINARY} is not built (GRANARY_PR_HELPER names another)')
    started = []

    def make(**options):
        started.append(prhelper.PrHelper(tmp, **options))
        return started[-1]

    yield make
    failures = []
    for end in [one.cleanup for one in started] + [one.wait_gone for one in started]:
        try:
            end()
        except Exception as error:  # report it after the others were ended
            failures.append(repr(error))
    assert not failures, '\n'.join(failures)


@pytest.fixture
def helper(helpers):
    """Starts a helper with a socket and waits until it serves."""
    return lambda *args, **options: helpers().start(*args, **options)


@pytest.fixture
def null():
    """What requests for a helper can be about, where the answer does not matter."""
    with open('/dev/null', 'rb+', buffering=0) as file:
        yield file


@pytest.fixture
def guests():
    """A factory of drivers of vhost-user disks, which leave when the test is over."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Guest(*args, **options))
