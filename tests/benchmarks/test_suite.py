"""The suite, tiny: what is measured, wrong numbers found, failures recorded."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import (
    cases,
    checks,
    densities,
    environment,
    families,
    floors,
    problem,
    report,
    suite,
    training,
)
from benchmarks.cases import Case
from benchmarks.densities import Library
from jaxmdn import NormalHead
from jaxmdn.losses.kernels import dispatch

pytestmark = pytest.mark.usefixtures("as_users_run")

SHAPE = {"rows": 32, "components": 3, "dim": 2}
ROOFS = {"copy": 1e10, "fresh_copy": 2e10, "matmul": {"float32": 1e11, "bfloat16": 1e11}}


class Wrong(densities.PlainJax):
    """Forgets a constant."""

    def log_prob(self, case, raw, y):
        return super().log_prob(case, raw, y) + 0.1


class Raising(densities.PlainJax):
    def log_prob(self, case, raw, y):
        raise RuntimeError("no such thing\nand a traceback")


@pytest.fixture
def two_implementations(monkeypatch):
    """The default and ``"xla"``: every other one compiles for nothing here."""
    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", ("xla",))


def measure(case, *peers):
    found = suite.measure(case, peers, repeats=2, budget=0.1, roofs=ROOFS)
    return {record["contender"]: record for record in found}


def test_records_of_right_wrong_and_failing_contenders():
    peers = (Wrong("wrong", "jax"), Raising("raising", "jax"), densities.DISTRAX)
    found = measure(Case(operation="nll_gradient", **SHAPE), *peers)
    assert list(found)[:2] == ["jaxmdn", "jaxmdn, xla"]
    assert list(found)[-4:] == ["plain JAX", "wrong", "raising", "distrax"]
    assert found["jaxmdn, pallas_triton"]["status"] == "not served"
    assert found["raising"]["status"] == "failed"
    assert found["raising"]["reason"] == "RuntimeError: no such thing"
    assert found["wrong"]["status"] == "wrong"
    assert 0.02 < found["wrong"]["errors"]["value"] <= 0.1
    assert found["wrong"]["errors"]["gradient"] < 1e-5
    assert found["wrong"]["reason"].startswith("error against float64: value ")
    for name in ("jaxmdn", "jaxmdn, xla", "plain JAX", "distrax"):
        record = found[name]
        assert record["status"] == "ok"
        assert all(error < 1e-5 for error in record["errors"].values())
        times = record["seconds"]
        assert 0 < times["minimum"] <= times["lower_quartile"] <= times["median"]
        assert times["median"] <= times["upper_quartile"]
        assert times["repeats"] == 2
        assert record["compile_seconds"] > 0
        assert record["temporary_bytes"] >= 0
        assert record["rows_per_second"] == 32 / times["median"]
        moved = 4 * 32 * (2 * 15 + 2) / times["median"]  # P = 15
        assert record["bytes_per_second"] == moved
        assert record["share_of_copy"] == moved / 2e10


@pytest.mark.parametrize(
    "operation",
    [
        *("nll", "linear_nll_gradient", "sample", "quantile", "log_prob"),
        *(
            pytest.param(operation, marks=pytest.mark.nightly)
            for operation in ("linear_nll", "training_step", "ensemble_step", "fit_epoch")
        ),
    ],
)
def test_every_operation_runs_and_is_right(operation, two_implementations):
    hidden = 4 if operation.startswith("linear") or operation.endswith(("step", "epoch")) else 0
    draws = 5 if operation == "sample" else 0
    found = measure(Case(operation=operation, hidden=hidden, draws=draws, peers=False, **SHAPE))
    assert {record["status"] for record in found.values()} == {"ok"}
    assert all(error < 1e-5 for error in found["jaxmdn"]["errors"].values())


def test_a_training_step_does_what_float64_does():
    case = Case(operation="training_step", hidden=4, **SHAPE)
    (name, kind, prepare), *_ = training.contenders(case)
    assert (name, kind) == ("jaxmdn", "jaxmdn")
    found = checks.errors(problem.create(case), "whitening", prepare().call())
    assert found["value"] < 1e-5


@pytest.mark.parametrize(("covariance", "dtype"), [("full", "float32"), ("diagonal", "bfloat16")])
def test_gradients_of_either_parameterization_and_dtype(covariance, dtype, two_implementations):
    shape = {"rows": 8, "components": 2, "dim": 3, "covariance": covariance}
    case = Case(operation="nll_gradient", dtype=dtype, peers=dtype == "float32", **shape)
    found = measure(case, densities.DISTRAX)
    assert {record["status"] for record in found.values()} == {"ok"}
    assert ("distrax" in found) == (dtype == "float32")
    limit = checks.GRADIENT_PROMISES[dtype]
    assert all(record["errors"]["gradient"] <= limit for record in found.values())


@pytest.mark.parametrize(
    ("covariance", "dim", "link"),
    [("diagonal", 1, "softplus"), ("diagonal", 2, "exp"), ("full", 2, "softplus")],
)
def test_what_is_expected_is_scipys_with_a_complex_step(covariance, dim, link):
    """The yardstick itself: the value against SciPy, every derivative by a complex step."""
    case = Case(
        operation="nll_gradient", rows=3, components=2, dim=dim, covariance=covariance, link=link
    )
    arrays, K, D = problem.create(case), 2, dim
    y = np.asarray(arrays.y, np.float64)

    def rows(raw, parameterization, log_normal):
        logits, loc, raw_scale = np.split(raw[:, : K + 2 * K * D], [K, K + K * D], axis=1)
        scale = np.exp(raw_scale) if link == "exp" else 1e-3 + np.log(1 + np.exp(raw_scale))
        values = []
        for n in range(len(raw)):
            parts = []
            for k in range(K):
                factor = np.diag(scale[n, D * k : D * k + D])
                if covariance == "full" and parameterization == "scale_tril":
                    factor[1, 0] = raw[n, -K + k]
                elif covariance == "full":
                    factor = np.linalg.inv(np.array([[1, 0], [raw[n, -K + k], 1]])) @ factor
                parts.append(log_normal(y[n], loc[n, D * k : D * k + D], factor) + logits[n, k])
            values.append(np.log(np.sum(np.exp(parts))) - np.log(np.sum(np.exp(logits[n]))))
        return np.asarray(values)

    def scipys(y, loc, factor):
        return stats.multivariate_normal(loc, factor @ factor.T).logpdf(y)

    def of_complex_numbers(y, loc, factor):  # which SciPy's refuses
        z = np.linalg.solve(factor, y - loc)
        return -0.5 * np.sum(z**2 + np.log(2 * np.pi)) - np.log(np.prod(np.diag(factor)))

    for name in ("whitening", "scale_tril"):
        expected, raw = arrays.expected(name), np.asarray(arrays.raw[name], np.float64)
        exact = rows(raw, name, scipys)
        np.testing.assert_allclose(expected.rows, exact, rtol=1e-10)
        np.testing.assert_allclose(expected.value, -exact.mean(), rtol=1e-10)
        (gradient,) = expected.gradients
        for i, step in enumerate(1e-30j * np.eye(raw.shape[1])):
            slope = -rows(raw + step, name, of_complex_numbers).imag / 1e-30 / 3
            np.testing.assert_allclose(gradient[:, i], slope, rtol=1e-9, atol=1e-15)


def test_samples_from_the_wrong_component_are_found():
    case = Case(operation="sample", draws=50, rows=200, components=3, dim=2)
    arrays = problem.create(case)
    mean, variance = arrays.moments
    noise = np.random.default_rng(0).normal(size=(50, 200, 2))
    good = mean + noise * np.sqrt(variance)
    limit = checks.tolerance(case)
    assert not checks.is_wrong(checks.errors(arrays, "whitening", good), limit)
    for bad in (good[:, ::-1], 1.2 * good, np.where(good == good[0, 0, 0], np.nan, good)):
        assert checks.is_wrong(checks.errors(arrays, "whitening", bad), limit)


def test_necessary_traffic_and_arithmetic():
    raw, targets = 4 * 32 * 15, 4 * 32 * 2  # P = 15
    for operation, expected in {
        "nll_gradient": 2 * raw + targets,
        "nll": raw + targets,
        "log_prob": raw + targets + 4 * 32,
        "sample": raw + 7 * targets,
        "quantile": raw + 2 * targets,
        "training_step": 0,
    }.items():
        draws = 7 if operation == "sample" else 0
        case = Case(operation=operation, draws=draws, **SHAPE)
        assert suite.necessary_bytes(case) == expected
        assert suite.necessary_operations(case) == 0
    case = Case(operation="linear_nll_gradient", hidden=4, dtype="bfloat16", **SHAPE)
    assert suite.necessary_bytes(case) == 2 * 2 * (32 * 4 + 4 * 15) + 4 * 32 * 2
    assert suite.necessary_operations(case) == 3 * 2 * 32 * 4 * 15


def test_a_missing_library_and_a_case_too_large_are_named(monkeypatch):
    monkeypatch.setattr(environment, "roofs", lambda **_: ROOFS)
    monkeypatch.setattr(environment, "free_bytes", lambda: 1000)
    peers = (Library("missing", "no_such_module"), densities.DISTRAX)
    found = suite.run([Case(operation="nll", **SHAPE)], peers=peers, progress=False)
    assert "no_such_module" in found["peers"]["missing"]["missing"]
    assert found["peers"]["distrax"] == {"version": found["versions"]["distrax"]}
    assert {"python", "jaxmdn", "jax", "jaxlib", "distrax"} <= set(found["versions"])
    assert set(found["device"]) == {"platform", "model", "devices", "cores"}
    (record,) = found["measurements"]
    assert record["status"] == "left out"
    assert "GB" in record["reason"]


def test_when_the_time_is_up_the_rest_is_named(monkeypatch):
    monkeypatch.setattr(environment, "roofs", lambda **_: ROOFS)
    selected = cases.suite(quick=True)[:3]
    found = suite.run(selected, peers=(), quick=True, minutes=1e-9, progress=False)
    assert [r["status"] for r in found["measurements"]] == ["left out"] * 3
    text = report.markdown(found)
    assert "the time was up (1e-09 minutes)" in text
    assert "`python -m benchmarks --quick --minutes 1e-09`" in text


def test_the_suites_cover_every_operation_and_begin_with_the_default_head():
    quick, small, large = cases.suite(quick=True), cases.suite(), cases.suite(large=True)
    for found in (quick, small, large):
        assert len(set(found)) == len(found)
        assert {case.sweep for case in found} == {"figures", *cases.SWEEPS}
        assert found[0].head == NormalHead(found[0].components, found[0].dim)
        assert found[0].peers
    assert {case.operation for case in small} == set(cases.OPERATIONS)
    assert {case.operation for case in large} == set(cases.OPERATIONS)
    assert max(case.rows for case in small) == 10**7
    assert max(case.rows for case in large if case.sweep == "figures") == 2**20
    assert not any(case.peers for case in large if case.sweep != "figures")
    exponential = next(case for case in small if case.link == "exp")
    assert exponential.head.min_scale == 0
    assert exponential.peers
    assert exponential.label.endswith(", exp")


def test_roofs_are_positive(monkeypatch):
    monkeypatch.setattr(environment.timing, "MIN_REPEATS", 1)
    found = environment.roofs(quick=True)
    assert set(found) == {"copy", "fresh_copy", "matmul"}
    assert min(found["copy"], found["fresh_copy"], *found["matmul"].values()) > 0


def test_families_beside_the_normal():
    chosen = ("normal", families.OTHERS[0])
    found = families.run(chosen, rows=64, components=2, repeats=2, budget=0.1, floor=False)
    times = {r["family"]: r["seconds"]["median"] for r in found["measurements"]}
    assert list(times) == [families.FUSED, "normal", "student_t, df = 4.0"]
    for record in found["measurements"]:
        assert record["ratio"] == times[record["family"]] / times["normal"]
        assert record["compile_seconds"] > 0


def test_functions_are_counted_once():
    found = floors.count(lambda x: jnp.sum(jnp.exp(x) / (1 + jnp.exp(x))), jnp.ones((4, 3)))
    assert found == {"exponential": 12, "divide": 12}
