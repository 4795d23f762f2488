"""The grid that asks whether a default is slower than plain JAX."""

import json

import numpy as np
import pytest

from benchmarks import grid, plain_families


def test_a_run_adds_its_column(tmp_path, monkeypatch, as_users_run, capsys):
    monkeypatch.setattr(grid, "QUICK", (((4,), (1, 2), (1,)), ((), (), ())))
    monkeypatch.setattr(grid, "LINKS", ("exp",))
    grid.main(["--quick", "--quiet", "--repeats", "1", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*-grid.json")
    found = json.loads(path.read_text())
    ((name, run),) = found["runs"].items()
    shapes = [(r["operation"], r["rows"], r["components"], r["dim"]) for r in run["measurements"]]
    assert shapes == [(operation, 4, k, 1) for k in (1, 2) for operation in ("nll_gradient", "nll")]
    for record in run["measurements"]:
        assert record["ratio"] == record["plain"] / record["seconds"] > 0
    assert "4 problems, worst" in capsys.readouterr().out
    path.write_text(json.dumps(found | {"runs": {"another": run}}))
    monkeypatch.setattr(grid, "measure", lambda question, **_: run["measurements"][0])
    grid.main(["--quick", "--quiet", "--out", str(tmp_path)])
    assert set(json.loads(path.read_text())["runs"]) == {"another", name}
    table = path.with_suffix(".md").read_text()
    assert table.count("| 4 |") >= 2
    assert "geometric mean" in table


@pytest.mark.parametrize("name", plain_families.NAMES)
@pytest.mark.parametrize("link", grid.LINKS)
def test_plain_families_are_the_same_density(name, link):
    """Textbook formulas beside the heads, values and gradients."""
    question = grid.Question(name, 8, 3, 1 if name == "categorical" else 2, link, "nll_gradient")
    (own, gradient), (plain, expected) = (runner.call() for runner in question.runners())
    np.testing.assert_allclose(own, plain, rtol=2e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_questions_cover_families_links_and_shapes():
    found = list(grid.questions(grid.SHAPES, grid.OTHERS))
    assert {q.family for q in found} == {"normal", *plain_families.NAMES}
    assert len(set(found)) == len(found) > 400
    assert max(q.entries for q in found) <= grid.MAX_ENTRIES
