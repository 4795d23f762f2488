"""``jaxmdn bench``: its figures against SciPy and float64, its table, how times are taken."""

import json

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, logsumexp

from jaxmdn import cli
from jaxmdn.cli import bench, timing
from jaxmdn.heads import NormalHead

pytestmark = pytest.mark.usefixtures("as_users_run")

ROOFS = {"copy": 1e10, "fresh_copy": 5e9}


@pytest.fixture
def coarse_roofs(monkeypatch):
    monkeypatch.setattr(timing, "copy_rates", lambda **_: ROOFS)


def test_figures_and_table(tmp_path, capsys, coarse_roofs, monkeypatch):
    monkeypatch.setattr(bench, "BLOCK_ENTRIES", 20 * 15)  # float64 in three blocks
    path = tmp_path / "figures.json"
    options = ["--components", "3", "--dim", "2", "--rows", "50", "--repeats", "2"]
    assert cli.main(["bench", *options, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert (found["family"], found["rows"], found["dtype"]) == ("diagonal normal", 50, "float32")
    assert found["roofs"] == ROOFS
    assert [(r["quantity"], r["implementation"], r["default"]) for r in found["results"]] == [
        (quantity, name, name == "xla_chunked")
        for quantity in ("value", "value and gradient")
        for name in ("xla", "xla_chunked")
    ]
    for result in found["results"]:
        seconds, copies = result["seconds"]["median"], 2 if "grad" in result["quantity"] else 1
        assert 0 <= result["error"] < 1e-5
        assert result["compile_seconds"] > 0
        assert result["seconds"]["repeats"] == 2
        assert result["rows_per_second"] == 50 / seconds
        moved = 4 * 50 * (15 * copies + 2)
        assert result["share_of_copy"] == pytest.approx(moved / seconds / 1e10)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  xla_chunked * ") for line in lines) == 2
    assert lines[0] == "diagonal normal: 3 components, 2 output(s), 50 rows, float32"


def test_other_families_and_dtypes(tmp_path, coarse_roofs):
    path = tmp_path / "figures.json"
    options = ["--family", "laplace", "--rows", "20", "--components", "2", "--repeats", "1"]
    assert cli.main(["bench", *options, "--dtype", "float64", "--json", str(path)]) == 0
    results = json.loads(path.read_text())["results"]
    assert [r["implementation"] for r in results if r["default"]] == ["xla", "xla"]
    assert all(result["error"] < 1e-14 for result in results)


def test_float64_is_scipys_and_errors_are_found():
    head, rng = NormalHead(2, 1), np.random.default_rng(0)
    raw, y = rng.normal(size=(7, 6)), rng.normal(size=(7, 1))
    scale = 1e-3 + np.log1p(np.exp(raw[:, 4:]))
    parts = log_softmax(raw[:, :2], axis=1) + stats.norm(raw[:, 2:4], scale).logpdf(y)
    weights = np.exp(parts - logsumexp(parts, axis=1, keepdims=True))
    z = (y - raw[:, 2:4]) / scale
    slopes = np.concatenate(
        [
            np.exp(log_softmax(raw[:, :2], axis=1)) - weights,
            -weights * z / scale,
            weights * (1 - z**2) / scale / (1 + np.exp(-raw[:, 4:])),
        ],
        axis=1,
    )
    value, gradient = bench.float64_nll(head, raw, y)
    np.testing.assert_allclose(value, -logsumexp(parts, axis=1).mean(), rtol=1e-13)
    np.testing.assert_allclose(gradient, slopes / 7, rtol=1e-11, atol=1e-15)
    assert bench.error(value, (value, gradient)) == 0
    assert bench.error((value, 1.01 * gradient), (value, gradient)) == pytest.approx(0.01)
    assert bench.error(value + 0.1, (value, gradient)) == pytest.approx(0.1 / max(1, abs(value)))
    assert bench.error((value, np.nan * gradient), (value, gradient)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "gamma", "--covariance", "full"], "--covariance is of normals alone; "),
        (["--json", "none/file.json"], "--json none/file.json: name a file in an existing folder"),
        (["--family", "nonsense"], "FactorizedHead: families"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"jaxmdn bench: {message}")
    assert captured.err.count("\n") == 1


def test_alternation_takes_turns_and_stops_at_the_budget(monkeypatch):
    clock, calls = [0.0], []

    def slow(name, seconds):
        def call():
            calls.append(name)
            clock[0] += seconds

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    runners = [timing.Runner(slow("a", 0.5)), timing.Runner(slow("b", 1e-3), steps=4)]
    a, b = timing.alternate(runners, repeats=9, budget=1.0)
    assert (a["repeats"], b["repeats"]) == (timing.MIN_REPEATS, 9)
    assert a["median"] == pytest.approx(0.5)
    assert b["median"] == pytest.approx(1e-3 / 4)
    assert calls.count("a") == 2 + timing.MIN_REPEATS  # tried twice, then sampled


def test_summary_and_copies():
    found = timing.summary(np.arange(1.0, 6.0))
    assert found == {
        "median": 3.0, "lower_quartile": 2.0, "upper_quartile": 4.0, "minimum": 1.0, "repeats": 5
    }  # fmt: skip
    rates = timing.copy_rates(quick=True)
    assert rates.keys() == ROOFS.keys()
    assert min(rates.values()) > 0


def test_only_an_accelerator_is_given_a_queue(monkeypatch):
    order = []
    runner = timing.Runner(lambda: order.append("launch"), wait=lambda _: order.append("wait"))
    timing._seconds(runner, 3)
    assert order == ["launch", "wait"] * 3 + ["wait"]
    order.clear()
    monkeypatch.setattr(timing.jax, "default_backend", lambda: "gpu")
    timing._seconds(runner, 3)
    assert order == ["launch"] * 3 + ["wait"]
