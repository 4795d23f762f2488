"""Counts what a test run compiles, test by test, and holds the number to a ceiling.

Compiling programs that run once is nearly all that a run takes. JAX reports every program that it
traces, lowers and compiles (or reads from its cache on disk: the count is the same). It, and not a
time, has a ceiling: ``max_programs`` in pyproject.toml. What two files share is compiled in every
process that runs one of them, so that the number varies by a hundred or so with which process is
free first: the ceiling needs that much room.
"""

from __future__ import annotations

import collections
import time
from typing import NamedTuple

import jax
import pytest

COMPILE = "/jax/core/compile/backend_compile_duration"
TRACE = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
)
NAME = "compiled programs"
DEAREST = 10


class Spent(NamedTuple):
    """Programs compiled, seconds of tracing and lowering, seconds of compiling."""

    programs: int = 0
    tracing: float = 0.0
    compiling: float = 0.0

    def __add__(self, other):
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other):
        return Spent(*(a - b for a, b in zip(self, other, strict=True)))

    @property
    def seconds(self):
        return self.tracing + self.compiling


class Counter:
    """What this process has spent so far."""

    def __init__(self):
        # The newest are enough for what they may be parts of; all would be 1 kB for each fit.
        self.spent, self.parts = Spent(), collections.deque(maxlen=1000)
        jax.monitoring.register_event_duration_secs_listener(self.hear)

    def hear(self, event, seconds, **_):
        if event == COMPILE:
            self.spent += Spent(1, 0.0, self.own(seconds))
        elif event in TRACE:
            self.spent += Spent(0, self.own(seconds), 0.0)

    def own(self, seconds):
        """What just ended took ``seconds``; less those of its parts, which ended and counted."""
        start, own = time.perf_counter() - seconds, seconds
        while self.parts and self.parts[-1][0] >= start:
            own -= self.parts.pop()[1]
        self.parts.append((start, seconds))
        return own


class Report:
    """What each test of the whole run has spent, whichever process it ran in."""

    def __init__(self, ceiling):
        self.ceiling, self.tests = ceiling, {}

    @property
    def total(self):
        return sum(self.tests.values(), Spent())

    @property
    def over(self):
        return 0 < self.ceiling < self.total.programs

    def lines(self):
        total = self.total
        yield (
            f"{total.programs} programs (at most {self.ceiling or 'any number'}), "
            f"{total.tracing:.0f} s of tracing and {total.compiling:.0f} s of compiling"
        )
        dearest = sorted(self.tests.items(), key=lambda item: -item[1].seconds)[:DEAREST]
        for name, spent in dearest:
            if spent.programs:
                yield f"{spent.seconds:6.1f} s {spent.programs:5d} programs  {name}"
        if self.over:
            yield (
                f"FAILED: {total.programs} programs are more than max_programs = {self.ceiling} "
                "(pyproject.toml). Share a jitted function, or keep to the shapes of other tests."
            )


COUNTER = Counter()
BEFORE, REPORT = pytest.StashKey[Spent](), pytest.StashKey[Report]()


def pytest_addoption(parser):
    parser.addini("max_programs", "the most programs that a run may compile; 0: any", default="0")


def pytest_configure(config):
    config.stash[REPORT] = Report(int(config.getini("max_programs")))
    config.pluginmanager.register(Listener(config.stash[REPORT]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[BEFORE] = COUNTER.spent
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown":  # xdist sends a report's user properties on to the main process
        item.user_properties.append((NAME, list(COUNTER.spent - item.stash[BEFORE])))


class Listener:
    """Keeps what every test's last report says."""

    def __init__(self, report):
        self.report = report

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.report.tests[report.nodeid] = Spent(*dict(report.user_properties)[NAME])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if session.config.stash[REPORT].over and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    report = config.stash[REPORT]
    if report.tests:
        terminalreporter.section(NAME)
        for line in report.lines():
            terminalreporter.line(line, red=line.startswith("FAILED"))
