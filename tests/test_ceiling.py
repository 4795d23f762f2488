"""Compiled programs are counted per test, in every process, and too many fail a run."""

from pathlib import Path

import jax
import numpy as np
import pytest
from programs import COMPILE, COUNTER, TRACE, Counter, Report, Spent

TESTS = """
    import jax
    import pytest

    @pytest.mark.parametrize("rows", [3, 4, 3])
    def test_compiles(rows):
        jax.jit(lambda x: x @ x.T)(jax.numpy.zeros((rows, 2)))

    def test_compiles_nothing():
        pass
"""


def programs_of(function, *arguments):
    before = COUNTER.spent
    function(*arguments)
    return (COUNTER.spent - before).programs


def test_each_program_counts_once_also_where_it_is_read_from_disk():
    function, x = jax.jit(lambda x: 2 * x + 1), np.ones(3)
    assert programs_of(function, x) == 1
    assert programs_of(function, x) == 0
    assert programs_of(function, np.ones(4)) == 1
    function.clear_cache()
    assert programs_of(function, x) == 1  # in the cache on disk, if there is one
    assert min(COUNTER.spent) > 0


def test_no_second_of_a_part_counts_twice(monkeypatch):
    monkeypatch.setattr("jax.monitoring.register_event_duration_secs_listener", lambda _: None)
    counter, now = Counter(), iter([10.0, 11.0, 12.0, 12.5, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    # From 9 to 10; from 10.5 to 11, a part of 10.2 to 12; from 12.1 to 12.5; all of that from 8 on.
    for event, seconds in ((TRACE[0], 1), (TRACE[0], 0.5), (TRACE[0], 1.8), (COMPILE, 0.4)):
        counter.hear(event, seconds)
    counter.hear(TRACE[1], 12)
    assert counter.spent == pytest.approx((1, 11.6, 0.4))


@pytest.mark.parametrize(("ceiling", "over"), [(0, False), (5, False), (4, True)])
def test_the_report_names_total_ceiling_and_the_dearest_first(ceiling, over):
    report = Report(ceiling)
    report.tests = {"cheap": Spent(2, 0.25, 0.5), "dear": Spent(3, 1.0, 2.0), "free": Spent()}
    first, *tests = report.lines()
    assert first.startswith("5 programs (at most ")
    assert first.endswith("1 s of tracing and 2 s of compiling")
    assert [line.split() for line in tests[:2]] == [
        ["3.0", "s", "3", "programs", "dear"],
        ["0.8", "s", "2", "programs", "cheap"],
    ]
    assert report.over == over == (len(tests) == 3)
    if over:
        assert "5 programs are more than max_programs = 4 (pyproject.toml)" in tests[2]


@pytest.mark.parametrize(("workers", "ceiling", "status"), [(0, 3, 1), (2, 100, 0)])
def test_a_run_above_the_ceiling_fails(pytester, monkeypatch, workers, ceiling, status):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makeini(f"[pytest]\nmax_programs = {ceiling}\n")
    pytester.makeconftest("pytest_plugins = ['programs']")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(f"-n{workers}")
    assert result.ret == status
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"*programs (at most {ceiling})*", "* s * programs *::test_*"])
    result.stdout.no_fnmatch_line("*test_compiles_nothing*")
    said = "FAILED: * programs are more than max_programs = 3*"
    (result.stdout.fnmatch_lines if status else result.stdout.no_fnmatch_line)(said)
