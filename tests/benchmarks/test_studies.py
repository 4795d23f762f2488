"""Studies: records that are continued, what is done to targets, the sums behind the tables."""

import json

import numpy as np
import pytest

from benchmarks.studies import cells, components, generalisation, objectives


def test_a_study_goes_on_where_it_stopped(tmp_path, capsys):
    """What is there is not run again; a cell that returns nothing leaves nothing."""
    path, asked = tmp_path / "some" / "study.json", []

    def run(name, seed):
        asked.append((name, seed))
        return None if name == "odd" else {"score": 10.0 * seed, "curve": [1, 2]}

    wanted = [{"name": name, "seed": seed} for seed in range(2) for name in ("a", "odd")]
    first = cells.complete(path, wanted[:1], run, report=False)
    assert asked == [("a", 0)]
    assert first == json.loads(path.read_text())["records"]
    both = cells.complete(path, wanted, run, report=False)
    assert asked[1:] == [("odd", 0), ("a", 1), ("odd", 1)]
    assert [record["seed"] for record in both] == [0, 1]
    assert cells.complete(path, wanted, pytest.fail, report=True) == both
    assert [file.name for file in path.parent.iterdir()] == ["study.json"]
    np.testing.assert_array_equal(cells.values(both, "score", name="a"), [0.0, 10.0])
    assert "score 10.000" in capsys.readouterr().out


def test_mean_and_standard_error():
    assert cells.show(np.array([1.0, 2.0, 4.0])) == "2.333 ± 0.882"
    assert cells.show(np.array([1.0]), digits=1) == "1.0"
    assert cells.show(np.array([])) == ""


@pytest.mark.parametrize("kind", generalisation.NOISES)
def test_spoilt_targets_have_the_spread_that_is_stated(kind):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200_000, 2)), 4.0 * rng.normal(size=(200_000, 1))
    added = (generalisation.spoil(kind, x, y, rng) - y) / y.std()
    variance = {"label noise": 0.25, "heteroscedastic": 0.25, "outliers": 0.1 * 9}[kind]
    np.testing.assert_allclose(added.var(), variance, rtol=0.05)
    np.testing.assert_allclose(added.mean(), 0, atol=0.01)
    far = np.abs(x[:, 0]) > 1.5
    by_place = added[far].var() / added[~far].var()
    assert (by_place > 3) == (kind == "heteroscedastic")
    assert np.mean(added == 0) == pytest.approx(0.9 * (kind == "outliers"), abs=0.01)


def test_errors_are_beside_those_of_the_squared_error():
    """Geometric means over the seeds of a set: 2 and 8 beside 1 and 2."""
    records = [
        {"problem": "boston", "condition": "10 %", "model": model, "seed": seed, "mae_mean": value}
        | {"mae_median": value / 2}
        for model, pair in (("squared error", (1.0, 2.0)), ("normal", (2.0, 8.0)))
        for seed, value in enumerate(pair)
    ]
    own = generalisation.ratios(records, "mae_mean", "normal", "10 %")
    np.testing.assert_allclose(own, [np.sqrt(16 / 2)])
    own = generalisation.ratios(records, "mae_median", "normal", "10 %")
    np.testing.assert_allclose(own, [np.sqrt(16 / 2) / 2])


def test_epochs_to_the_goal_of_the_likelihood():
    """The goal: 0.05 nats above the best that ``nll`` reaches on that seed."""
    curves = {"nll": [3.0, 2.0, 1.0], "crps": [3.0, 1.04, 1.2], "energy": [3.0, 3.0, 3.0]}
    records = [
        {"problem": "inverse", "objective": name, "seed": 0, "valid_nll": curve}
        | {"seconds": [0.0, 9.0, 9.012, 9.024], "test_nll": 1.5}
        for name, curve in curves.items()
    ]
    found = objectives.summary(records)
    epochs = {name: found["inverse", name]["epochs"][0] for name in curves}
    assert (epochs["nll"], epochs["crps"]) == (2, 1)
    assert np.isnan(epochs["energy"])
    table = objectives.table(found)
    assert "| energy | 1.500 (-; 0/1) |" in table
    assert "| energy | 12 |" in table  # milliseconds of an epoch, without compiling


def test_the_table_of_components():
    """A row a problem and family, a column for each K; what is not there is left empty."""
    cell = {"problem": "boston", "family": "student_t", "num_components": 3, "in_use": 2.0}
    table = components.report([cell | {"seed": s, "test_nll": 2.0 + s} for s in range(2)])
    assert table.splitlines()[2:] == ["| boston, student_t |  |  | 2.50 ± 0.50 (2.0) |  |  |  |"]
