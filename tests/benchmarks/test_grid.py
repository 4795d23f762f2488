"""The grid that asks whether a default is slower than plain JAX."""

import json

from benchmarks import grid


def test_a_run_adds_its_column(tmp_path, monkeypatch, as_users_run, capsys):
    monkeypatch.setattr(grid, "QUICK", ((4,), (1, 2), (1,)))
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
    monkeypatch.setattr(grid, "measure", lambda case, **_: run["measurements"][0])
    grid.main(["--quick", "--quiet", "--out", str(tmp_path)])
    assert set(json.loads(path.read_text())["runs"]) == {"another", name}
    table = path.with_suffix(".md").read_text()
    assert table.count("| 4 |") >= 2
    assert "geometric mean" in table
