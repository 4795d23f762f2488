"""The benchmark suite, tiny: its records, wrong numbers found, failures recorded."""

import json
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from benchmarks import (
    cases,
    checks,
    contenders,
    environment,
    families,
    files,
    problem,
    records,
    report,
    suite,
    timing,
    training,
)
from benchmarks.cases import Case
from benchmarks.densities import Distrax, PlainJax
from jaxmdn import cli
from jaxmdn.cli import bench

pytestmark = pytest.mark.usefixtures("as_users_run")

SHAPE = {"rows": 32, "components": 3, "dim": 2}
ROOFS = {"copy": 1e10, "fresh_copy": 1e10, "matmul": {"float32": 1e11, "bfloat16": 1e11}}
TINY = (
    Case(operation="nll_gradient", **SHAPE),
    Case(operation="nll_gradient", rows=16, components=3, dim=2, sweep="rows", peers=False),
    Case(operation="nll_gradient", rows=64, components=3, dim=2, sweep="rows", peers=False),
)


class Wrong(Distrax):
    """Forgets a constant."""

    name = "wrong"

    def log_prob(self, case, raw, y):
        return super().log_prob(case, raw, y) + 0.1


class Raising(Distrax):
    name = "raising"

    def log_prob(self, case, raw, y):
        raise RuntimeError("no such thing\nand a traceback")


class Missing(Distrax):
    name, module = "missing", "no_such_module"


@pytest.fixture
def coarse_roofs(monkeypatch):
    monkeypatch.setattr(environment, "roofs", lambda **_: ROOFS)


def measure(case, *peers):
    found = suite.measure(case, peers, repeats=2, budget=0.1, roofs=ROOFS)
    return {record["contender"]: record for record in found}


def test_command_from_end_to_end(tmp_path, monkeypatch, capsys, coarse_roofs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cases, "suite", lambda **_: TINY)
    monkeypatch.setattr(contenders, "all_peers", lambda **_: (Distrax(), Missing()))
    assert cli.main(["bench", "--quick", "--repeats", "2", "--quiet"]) == 0
    assert "nll_gradient  32, 3, 2 diagonal" in capsys.readouterr().out
    folder = tmp_path / "jaxmdn-bench"
    stem = environment.slug(environment.device()) + "-quick"
    pictures = ("ratios", "scaling", "throughput")
    assert sorted(os.listdir(folder)) == sorted(
        [f"{stem}.json", f"{stem}.md", *(f"{stem}-{name}.png" for name in pictures)]
    )

    found = json.loads((folder / f"{stem}.json").read_text())
    assert set(found) == {
        "schema", "device", "versions", "date", "precision", "quick", "repeats", "seconds",
        "roofs", "peers", "measurements", "variables", "minutes",
    }  # fmt: skip
    assert found["schema"] == suite.SCHEMA
    assert {"python", "jaxmdn", "jax", "jaxlib", "distrax"} <= set(found["versions"])
    assert set(found["device"]) == {"platform", "model", "devices", "cores"}
    assert "no_such_module" in found["peers"]["missing"]["missing"]
    ran = [record for record in found["measurements"] if "seconds" in record]
    assert {record["status"] for record in ran} == {"ok"}
    for record in ran:
        times = record["seconds"]
        assert 0 < times["lower_quartile"] <= times["median"] <= times["upper_quartile"]
        assert times["repeats"] == 2
        assert record["compile_seconds"] > 0
        assert record["temporary_bytes"] >= 0
        assert record["rows_per_second"] > 0
        assert record["kind"] == "floor" or all(e < 1e-5 for e in record["errors"].values())
    first = [record["contender"] for record in ran if record["case"] == "32, 3, 2 diagonal"]
    assert first[:3] == ["jaxmdn", "jaxmdn, xla", "plain JAX"]
    assert first[-1] == "distrax"

    text = (folder / f"{stem}.md").read_text()
    assert "| N, K, D | jaxmdn, ms | jaxmdn, xla, ms | plain JAX, ms | distrax, ms |" in text
    for case in TINY:
        assert f"| {case.label} |" in text
    for title in ("Defaults beside", "Gradient against float64", "How the cost grows"):
        assert f"## {title}" in text
    assert "| no |" not in text
    assert f"]({stem}-scaling.png)" in text


def test_a_wrong_peer_is_marked_and_a_raising_one_recorded():
    found = measure(TINY[0], Wrong(), Raising(), Distrax())
    assert found["wrong"]["status"] == "wrong"
    assert found["wrong"]["errors"]["value"] > 1e-2
    assert "seconds" in found["wrong"]
    assert found["raising"]["status"] == "failed"
    assert found["raising"]["reason"] == "RuntimeError: no such thing"
    assert found["distrax"]["status"] == "ok"
    text = report.markdown(whole([*found.values()]))
    assert ", **wrong** |" in text
    assert "| wrong | wrong | error against float64: value " in text
    assert "| raising | failed | RuntimeError: no such thing |" in text


def test_a_case_too_large_for_the_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(environment, "free_bytes", lambda: 1000)
    (record,) = measure(TINY[0]).values()
    assert record["status"] == "left out"
    assert "GB" in record["reason"]


OPERATIONS = (
    *("log_prob", "nll", "linear_nll_gradient", "sample", "quantile"),
    *(
        pytest.param(operation, marks=pytest.mark.nightly)
        for operation in ("linear_nll", "training_step", "ensemble_step")
    ),
)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_runs_and_is_right(operation):
    hidden = 4 if operation.startswith("linear") or operation.endswith("step") else 0
    draws = 5 if operation == "sample" else 0
    case = Case(
        operation=operation, hidden=hidden, draws=draws, link="softplus", peers=False, **SHAPE
    )
    found = measure(case)
    served = [record for record in found.values() if record["status"] != "not served"]
    assert {record["status"] for record in served} == {"ok"}
    assert all(error < 1e-5 for error in found["jaxmdn"]["errors"].values())


def test_a_training_step_does_what_float64_does():
    case = Case(operation="training_step", hidden=4, link="softplus", **SHAPE)
    (name, kind, prepare), *_ = training.contenders(case)
    assert (name, kind) == ("jaxmdn", "jaxmdn")
    found = checks.errors(problem.create(case), "whitening", prepare().call())
    assert found["value"] < 1e-5


@pytest.mark.parametrize(("covariance", "dtype"), [("full", "float32"), ("diagonal", "bfloat16")])
def test_gradients_of_either_parameterization_and_dtype(covariance, dtype):
    shape = {"rows": 8, "components": 2, "dim": 3, "covariance": covariance}
    case = Case(operation="nll_gradient", dtype=dtype, peers=dtype == "float32", **shape)
    found = measure(case, Distrax())
    ran = [record for record in found.values() if "seconds" in record]
    assert {record["status"] for record in ran} == {"ok"}
    assert ("distrax" in found) == (dtype == "float32")
    limit = checks.GRADIENT_PROMISES[dtype]
    assert all(record["errors"]["gradient"] <= limit for record in ran)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_what_is_expected_is_scipys(covariance):
    """The yardstick itself, against SciPy: the value, and the gradient by differences."""
    case = Case(operation="nll_gradient", rows=3, components=2, dim=2, covariance=covariance)
    arrays = problem.create(case)

    def rows(raw, parameterization):
        raw, y = np.asarray(raw, np.float64), np.asarray(arrays.y, np.float64)
        logits, loc, log_scale = raw[:, :2], raw[:, 2:6], raw[:, 6:10]
        values = []
        for n in range(3):
            parts = []
            for k in range(2):
                factor = np.diag(np.exp(log_scale[n, 2 * k : 2 * k + 2]))
                if covariance == "full" and parameterization == "scale_tril":
                    factor[1, 0] = raw[n, 10 + k]
                elif covariance == "full":
                    whitening = np.linalg.inv(factor) @ [[1, 0], [raw[n, 10 + k], 1]]
                    factor = np.linalg.inv(whitening)
                normal = stats.multivariate_normal(loc[n, 2 * k : 2 * k + 2], factor @ factor.T)
                parts.append(normal.logpdf(y[n]) + logits[n, k] - logsumexp(logits[n]))
            values.append(logsumexp(parts))
        return np.asarray(values)

    for name, expected in arrays.expected.items():
        raw = np.asarray(arrays.raw[name], np.float64)
        np.testing.assert_allclose(expected.rows, rows(raw, name), rtol=1e-10)
        np.testing.assert_allclose(expected.value, -rows(raw, name).mean(), rtol=1e-10)
        step = 1e-6 * np.eye(raw.shape[1])[-1]
        slope = -(rows(raw + step, name) - rows(raw - step, name)) / 2e-6 / 3
        np.testing.assert_allclose(expected.gradients[0][:, -1], slope, rtol=1e-6, atol=1e-9)


def test_samples_from_the_wrong_component_are_found():
    case = Case(operation="sample", draws=50, rows=200, components=3, dim=2)
    arrays = problem.create(case)
    mean, variance = arrays.moments
    noise = np.random.default_rng(0).normal(size=(50, 200, 2))
    good = jnp.asarray(mean + noise * np.sqrt(variance))
    limit = checks.tolerance(case)
    assert not checks.is_wrong(checks.errors(arrays, "whitening", good), limit)
    for bad in (good[:, ::-1], 1.2 * good, good.at[0, 0, 0].set(jnp.nan)):
        assert checks.is_wrong(checks.errors(arrays, "whitening", bad), limit)


def test_necessary_traffic_and_arithmetic():
    case = Case(operation="nll_gradient", **SHAPE)  # P = 15
    assert suite.necessary_bytes(case) == 4 * 32 * (2 * 15 + 2)
    case = Case(operation="linear_nll_gradient", hidden=4, dtype="bfloat16", **SHAPE)
    assert suite.necessary_bytes(case) == 2 * 2 * (32 * 4 + 4 * 15) + 4 * 32 * 2
    assert suite.necessary_operations(case) == 3 * 2 * 32 * 4 * 15
    assert suite.necessary_bytes(Case(operation="training_step", **SHAPE)) == 0


def test_alternation_takes_turns_and_stops_at_the_budget(monkeypatch):
    clock, calls = [0.0], []

    def slow(name, seconds):
        def call():
            calls.append(name)
            clock[0] += seconds

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    runners = [timing.Runner(slow("a", 0.5)), timing.Runner(slow("b", 1e-3))]
    a, b = timing.alternate(runners, repeats=9, budget=1.0)
    np.testing.assert_allclose(a, [0.5] * timing.MIN_REPEATS)
    np.testing.assert_allclose(b, [1e-3] * 9)
    assert calls.count("a") == 2 + timing.MIN_REPEATS  # tried twice, then sampled


def test_only_an_accelerator_is_given_a_queue(monkeypatch):
    order = []
    runner = timing.Runner(lambda: order.append("launch"), wait=lambda _: order.append("wait"))
    timing._seconds(runner, 3)
    assert order == ["launch", "wait"] * 3 + ["wait"]
    order.clear()
    monkeypatch.setattr(timing.jax, "default_backend", lambda: "gpu")
    timing._seconds(runner, 3)
    assert order == ["launch"] * 3 + ["wait"]


def test_when_the_time_is_up_the_rest_is_named():
    selected = cases.suite(quick=True)[:3]
    report = suite.run(selected, peers=(), repeats=1, budget=0.0, quick=True, minutes=1e-9)
    assert [r["status"] for r in report["measurements"]] == ["left out"] * 3
    text = files.markdown(report)
    assert "the time was up (1e-09 minutes)" in text
    assert "`jaxmdn bench --quick --minutes 1e-09`" in text


def test_an_accelerator_is_given_large_shapes():
    large, small = cases.suite(large=True), cases.suite()
    assert max(case.rows for case in large if case.sweep == "figures") == 2**20
    assert {case.operation for case in large} == {case.operation for case in small}
    assert not any(case.peers for case in large if case.sweep != "figures")


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")

    def interrupted(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_file(path, interrupted)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]
    files.replace_file(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"


def test_exponent():
    assert records.exponent([1.0, 2.0, 4.0, 8.0], [9.0, 3.0, 12.0, 48.0]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "--only nonsense: no such operation; there are nll_gradient, "),
        (["--out", "file"], "--out file is a file; name a folder."),
        (["--families", "--only", "nll"], "--families and --only exclude each other; choose one."),
        (
            ["--families", "--minutes", "1"],
            "--families and --minutes exclude each other; choose on",
        ),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"jaxmdn bench: {message}")
    assert captured.err.count("\n") == 1


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "benchmarks.files", None)
    assert cli.main(["bench"]) == 2
    assert "pip install 'jaxmdn[bench]'" in capsys.readouterr().err


def test_default_folder(tmp_path):
    assert str(bench.default_folder(tmp_path)) == "jaxmdn-bench"
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "jaxmdn").mkdir()
    (tmp_path / "jaxmdn" / "__init__.py").touch()
    assert bench.default_folder(tmp_path / "benchmarks") == tmp_path / "benchmarks" / "results"


def test_names_of_devices():
    cpu = {"platform": "cpu", "model": "ACME Core(TM) 7", "devices": 1, "cores": 2}
    assert environment.slug(cpu) == "cpu-acme-core-tm-7-2-cores"
    assert environment.title(cpu | {"cores": 1}) == "ACME Core(TM) 7, 1 core"
    gpu = {"platform": "gpu", "model": "ACME G200", "devices": 1, "cores": 2}
    assert environment.slug(gpu) == "gpu-acme-g200"


def test_the_suites_cover_every_operation():
    for quick in (True, False):
        found = cases.suite(quick=quick)
        assert len(set(found)) == len(found)
        assert {case.sweep for case in found} == {"figures", *cases.SWEEPS}
    assert {case.operation for case in found} == set(cases.OPERATIONS)
    assert max(case.rows for case in found) == 10**7


def test_roofs_are_positive(monkeypatch):
    monkeypatch.setattr(timing, "MIN_REPEATS", 1)
    found = environment.roofs(quick=True)
    assert found["copy"] > 0
    assert found["matmul"]["float32"] > 0


def test_plain_jax_is_the_densitys_formula_for_scalars():
    case = Case(operation="nll_gradient", rows=4, components=2, dim=1, link="softplus")
    arrays = problem.create(case)
    found = PlainJax().log_prob(case, arrays.raw["whitening"], arrays.y)
    np.testing.assert_allclose(found, arrays.expected["whitening"].rows, rtol=1e-5, atol=1e-6)


def whole(records):
    """A report around records."""
    return {
        "device": environment.device(), "versions": {}, "date": "2000-01-01", "quick": True,
        "precision": {"dtype": "float32", "matmul": "default"}, "repeats": 2, "seconds": 0.0,
        "roofs": ROOFS, "peers": {}, "variables": {}, "measurements": records,
    }  # fmt: skip


def test_families_beside_the_normal(tmp_path):
    chosen = ("normal", "poisson", families.OTHERS[0])
    found = families.run(chosen, rows=64, components=2, repeats=2, budget=0.1)
    names = [record["family"] for record in found["measurements"]]
    assert names == [families.FUSED, "normal", "poisson", "student_t, df = 4.0"]
    ratios = {record["family"]: record["ratio"] for record in found["measurements"]}
    assert ratios["normal"] == 1.0
    medians = {r["family"]: r["seconds"]["median"] for r in found["measurements"]}
    assert ratios["poisson"] == medians["poisson"] / medians["normal"]
    paths = families.write(found, tmp_path, "-quick")
    assert [path.name for path in paths] == [
        f"{environment.slug(found['device'])}-families-quick.{kind}" for kind in ("json", "md")
    ]
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(found))
    table = paths[1].read_text()
    assert table.count("\n| ") == 5
    assert f"| poisson | {1e3 * medians['poisson']:.2f} | {ratios['poisson']:.2f} |" in table
