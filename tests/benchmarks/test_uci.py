"""The standard splits: rows, scores and tables, on a small folder in the published layout."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks.uci import __main__ as command
from benchmarks.uci import contenders, report, scores, splits

pytestmark = pytest.mark.usefixtures("as_users_run")


@pytest.fixture
def folder(tmp_path):
    """Forty rows, two inputs; the target stands in the middle; two rows are the same."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    x[7] = x[21]
    y = 5.0 + 2.0 * x[:, 0] + 0.3 * rng.normal(size=40)
    own = tmp_path / "data" / "small"
    own.mkdir(parents=True)
    np.savetxt(own / "data.txt", np.column_stack([x[:, 0], y, x[:, 1]]))
    np.savetxt(own / "index_features.txt", [0, 2], fmt="%d")
    np.savetxt(own / "index_target.txt", [1], fmt="%d")
    return tmp_path / "data"


def test_splits_are_the_published_ones(folder):
    """As the legacy generator makes them, one after the other; nine tenths to train on."""
    assert splits.find_sets(folder) == ["small"]
    x, y = splits.read(folder / "small")
    np.random.seed(1)  # noqa: NPY002 (how the splits were published)
    for number in range(3):
        order = np.random.choice(range(40), 40, replace=False)  # noqa: NPY002
        own = splits.split(x, y, number)
        np.testing.assert_array_equal(own.x, x[order[:36]])
        np.testing.assert_array_equal(own.y_test, y[order[36:]])
        repeated = [row in (7, 21) and {7, 21} - {row} <= set(order[:36]) for row in order[36:]]
        assert own.repeated.tolist() == repeated
    assert (splits.num_splits(506), splits.num_splits(45_730)) == (20, 5)


def test_linear_model_and_scores_against_scipy(folder):
    """The least-squares predictive normal; CRPS, coverage and CDE loss in closed form."""
    own = splits.split(*splits.read(folder / "small"), 0)
    found = contenders.linear(own, 0)
    design = np.column_stack([np.ones(36), own.x])
    slope, rest, *_ = np.linalg.lstsq(design, own.y[:, 0], rcond=None)
    new = np.column_stack([np.ones(4), own.x_test])
    np.testing.assert_allclose(found.mean[:, 0], new @ slope, rtol=1e-5)
    leverage = np.einsum("ni,ij,nj->n", new, np.linalg.inv(design.T @ design), new)
    scale = np.sqrt(rest[0] / 33 * (1 + leverage))
    y, mean = own.y_test[:, 0], found.mean[:, 0]
    np.testing.assert_allclose(found.log_prob, stats.norm.logpdf(y, mean, scale), rtol=1e-4)
    values = scores.scores(found, own)
    z = (y - mean) / scale
    crps = scale * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - np.pi**-0.5)
    np.testing.assert_allclose(values["crps"], crps.mean(), rtol=0.05)
    cde = 1 / (2 * scale * np.sqrt(np.pi)) - 2 * stats.norm.pdf(y, mean, scale)
    np.testing.assert_allclose(values["cde"], cde.mean(), rtol=0.1)
    np.testing.assert_allclose(
        values["width"], (2 * stats.norm.ppf(0.95) * scale).mean(), rtol=1e-4
    )
    assert values["coverage"] == np.mean(np.abs(z) < stats.norm.ppf(0.95))
    np.testing.assert_allclose(values["rmse"], np.sqrt(np.mean((y - mean) ** 2)), rtol=1e-6)


def test_a_coarse_grid_is_scored_by_its_cells():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = np.round(2 * x[:, :1] + rng.normal(size=(40, 1)))
    own = splits.Split(x[:30], y[:30], x[30:], y[30:], np.zeros(10, bool))
    assert own.cell == 1.0
    found = contenders.linear(own, 0)
    mean, scale = (
        np.asarray(part)[:, 0, 0]
        for part in (found.density.components.loc, found.density.components.scale)
    )
    ends = [stats.norm.cdf(y[30:, 0] + half, mean, scale) for half in (-0.5, 0.5)]
    values = scores.scores(found, own)
    np.testing.assert_allclose(values["nll"], -np.log(ends[1] - ends[0]).mean(), rtol=1e-4)
    assert values["cell"] == 1.0


def test_quantiles_alone_are_scored():
    """Exact quantiles of a standard normal: the CRPS of its closed form."""
    y = np.array([[0.3], [-1.2]])
    quantiles = np.tile(stats.norm.ppf(contenders.LEVELS), (2, 1))
    own = splits.Split(y, y, y, y, np.zeros(2, bool))
    found = contenders.Prediction(None, None, np.zeros((2, 1)), quantiles)
    values = scores.scores(found, own)
    z = y[:, 0]
    crps = z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - np.pi**-0.5
    np.testing.assert_allclose(values["crps"], crps.mean(), rtol=5e-3)
    np.testing.assert_allclose(values["width"], 2 * stats.norm.ppf(0.95))
    assert "nll" not in values


def test_a_run_is_kept_continued_and_reported(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--data", str(folder), "--contenders", "linear", "--out", str(out)]
    command.main([*arguments, "--splits", "0:3"])
    files = sorted(path.name for path in (out / "small").iterdir())
    assert files == [f"linear-{number:02d}.json" for number in range(3)]
    record = json.loads((out / "small" / files[0]).read_text())
    assert {"set", "contender", "split", "scores", "versions", "device"} <= set(record)
    stamp = (out / "small" / files[0]).stat().st_mtime_ns
    capsys.readouterr()
    command.main([*arguments, "--splits", "0,3"])
    printed = capsys.readouterr().out
    assert (out / "small" / files[0]).stat().st_mtime_ns == stamp, "a split was trained again"
    assert "small 3 linear" in printed
    assert "| linear | 4 |" in printed
    figures = tmp_path / "published.csv"
    figures.write_text("dataset,method,metric,mean\nsmall,A,nll,0.25\nsmall,B,nll,0.5\n")
    command.main(
        ["--data", str(folder), "--report", "--out", str(out), "--published", str(figures)]
    )
    assert "| best published | | 0.25 (A)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "numbers"), [("", [0, 1, 2, 3]), ("1:3", [1, 2]), ("0,3", [0, 3])]
)
def test_choosing_splits(text, numbers):
    assert command.chosen(text, 4) == numbers


def test_tables_mark_the_leader():
    records = {
        name: [{"scores": {"nll": value, "coverage": 0.9}} for value in values]
        for name, values in {"a": [1.0, 2.0], "b": [3.0, 4.0]}.items()
    }
    lines = report.table(records, {}).splitlines()
    assert lines[2] == "| a | 2 | **1.500 ± 0.500** | 0.900 ± 0.000 |"
    assert lines[3] == "| b | 2 | 3.500 ± 0.500 | 0.900 ± 0.000 |"


def test_unknown_contenders_are_named(folder, tmp_path):
    with pytest.raises(SystemExit, match="'magic'"):
        command.main(["--data", str(folder), "--contenders", "magic", "--out", str(tmp_path)])
