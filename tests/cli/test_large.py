"""Tables that memory would not hold: read in pieces, a sample, rows in files, a bounded process."""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from jaxmdn import cli
from jaxmdn.cli import large, training
from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.reading import Format, read_pieces, read_table
from jaxmdn.cli.table import Table
from jaxmdn.heads import NormalHead
from jaxmdn.train import Columns, Standardizer

pytestmark = pytest.mark.usefixtures("as_users_run")


def table(count=400):
    rng = np.random.default_rng(0)
    size, kind = rng.normal(size=count), rng.choice(["house", "flat"], count)
    price = 100 + 20 * size + 15 * (kind == "house") + rng.normal(size=count)
    frame = pd.DataFrame({"row": np.arange(count), "size": size, "kind": kind, "price": price})
    frame["day"] = pd.date_range("2020-01-01", periods=count).strftime("%Y-%m-%d")
    frame["seller"] = [f"s{i % 9}" for i in range(count)]
    frame.loc[::7, "size"] = np.nan
    return frame


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet"])
def test_pieces_are_the_table(tmp_path, form):
    path, frame = tmp_path / f"a.{form}", table()
    frame.to_parquet(path) if form == "parquet" else frame.to_csv(path, index=False)
    whole, pieces = read_table(path), list(read_pieces(path, Format(), 64))
    assert [len(piece) for piece in pieces] == [64] * 6 + [16]
    pd.testing.assert_frame_equal(pd.concat(pieces), whole)
    if form == "parquet":  # and a folder of such files
        folder = tmp_path / "many.parquet"
        folder.mkdir()
        frame[:150].to_parquet(folder / "0.parquet")
        frame[150:].to_parquet(folder / "1.parquet")
        found = pd.concat(read_pieces(folder, Format(), 64))
        assert found["row"].tolist() == list(range(400)) == found.index.tolist()


def test_what_is_wrong_far_down_is_said(tmp_path):
    path, text = tmp_path / "a.csv", table().to_csv(index=False).encode()
    path.write_bytes(text + b"1,2,house,\xe4,,\n")
    with pytest.raises(UsageError, match="line 402 holds the byte 0xe4"):
        next(read_pieces(path, Format(), 64))
    path.write_bytes(text + b"1,2,house,3,,,,,\n")
    with pytest.raises(UsageError, match="cannot be read as a CSV table"):
        list(read_pieces(path, Format(), 64))
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match="a header but no rows"):
        list(read_pieces(tmp_path / "empty.csv", Format(), 64))


def arguments(path, **options):
    given = {"file": str(path), "target": ["price"], "drop": [], "keep": [], "categorical": []}
    given |= {"max_categories": 20, "weights": None, "split_by": None, "time": None}
    return argparse.Namespace(**{**given, **options})


@pytest.mark.parametrize("options", [{}, {"split_by": "seller"}, {"time": "day"}])
def test_rows_in_files_are_all_that_are_not_held_back(tmp_path, monkeypatch, request, options):
    monkeypatch.setattr(large, "SAMPLE", 200)
    monkeypatch.setattr(large, "read_pieces", lambda *own: read_pieces(*own, 64))
    monkeypatch.setattr(large, "PIECE", 64)
    table().to_csv(tmp_path / "a.csv", index=False)
    asked = arguments(tmp_path / "a.csv", **options)
    frame, count = large.sample(asked.file, Format(), 0)
    assert count == 400
    assert 60 < len(frame) <= 200
    sampled = Table.of(frame, asked, Format())
    assert sampled.inputs.dropped["row"].startswith("it only numbers")
    test = sampled.held_back(0.2, 0)
    held, rest = sampled.take(test), sampled.take(~test)
    columns = Columns.fit(rest.prepared, categorical=rest.inputs.categories)
    stored = large.Rows(tmp_path)
    request.addfinalizer(stored.close)
    large._store(stored, asked, NormalHead(2), (held,), columns)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"], "a kill would leave nothing"
    whole = table()
    if "split_by" in options:
        free = ~whole["seller"].isin(set(held.groups))
    elif "time" in options:
        free = whole.index < min(held.frame.index)
    else:
        free = ~whole.index.isin(held.frame.index)
    expected = np.asarray(columns(sampled.inputs.prepare(whole[free])))
    y = whole[free][["price"]].to_numpy()
    np.testing.assert_array_equal(stored.parts[0][0:1000], expected)
    np.testing.assert_array_equal(stored.parts[1][3:9], y[3:9])
    x_map, y_map = stored.maps(NormalHead(2))
    for found, peer in ((x_map, Standardizer.fit(expected)), (y_map, Standardizer.fit(y))):
        np.testing.assert_allclose(found.shift, peer.shift, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.scale, peer.scale, rtol=1e-12)


def test_a_sample_is_even(monkeypatch, tmp_path):
    monkeypatch.setattr(large, "SAMPLE", 100)
    pd.DataFrame({"a": np.arange(3000) % 10, "b": 1.0}).to_csv(tmp_path / "a.csv", index=False)
    drawn = np.concatenate(
        [large.sample(tmp_path / "a.csv", Format(), seed)[0].index for seed in range(30)]
    )
    thirds = np.histogram(drawn, bins=3, range=(0, 3000))[0] / len(drawn)
    np.testing.assert_allclose(thirds, 1 / 3, atol=4 * np.sqrt(2 / 9 / len(drawn)))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``jaxmdn fit`` on a machine whose memory holds nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(large, "SHARE", 0.0)
    monkeypatch.setattr(large, "SAMPLE", 200)
    table().to_csv("a.csv", index=False)
    options = ["--target", "price", "--drop", "day", "--quiet", "--hidden", "8"]
    return ["fit", "a.csv", *options, "--epochs", "60", "--batch-size", "32"]


def test_a_table_larger_than_memory_is_streamed(command, monkeypatch, capsys):
    assert cli.main([*command, "--ensemble"]) == 2
    assert "a.csv is larger than memory: it trains a single network" in capsys.readouterr().err
    told = {}

    def fit_stream(model, batches, **options):  # which has tests of its own
        told.update(options, rows=np.concatenate([y for _, y in batches]))
        raise TypeError("enough")

    monkeypatch.setattr(training, "fit_stream", fit_stream)
    monkeypatch.setattr(training, "_model", lambda *_: None)
    assert cli.main(command) == 2
    printed = capsys.readouterr()
    assert "a.csv: 400 rows\n  streamed     " in printed.out
    assert "enough" in printed.err
    held = len(told["validation"][0])
    assert 5 < held < 20
    assert 330 < len(told["rows"]) < 400 - 2 * held
    assert set(told["rows"][:, 0]) < set(table()["price"]) - set(told["validation"][1][:, 0])
    assert told["steps"] == 60 * told["every"] == 60 * -(-len(told["rows"]) // 32)
    assert not list(pathlib.Path().glob(".fit*"))


@pytest.mark.nightly
def test_what_was_streamed_is_a_fit_like_any_other(command, tmp_path):
    assert cli.main(command) == 0
    network, same, _ = json.loads((tmp_path / "fit" / "summary.json").read_text())["scores"]
    assert network["nll"] < same["nll"] - 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "fit"]
    assert cli.main(["predict", "fit", "a.csv", "--out", "b.csv"]) == 0
    assert len(pd.read_csv("b.csv")) == 400


MEASURE = """
import resource, sys
from jaxmdn import cli
code = cli.main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_table(tmp_path, form):
    """Ten times the rows, 2 million (0.4 GB as CSV), in less than 400 MB more."""
    peaks = {}
    for count in (200_000, 2_000_000):
        rng, path = np.random.default_rng(0), tmp_path / f"{count}.{form}"
        x = rng.normal(size=(count, 10)).astype(np.float64)
        frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(10)])
        frame["y"] = x[:, 0] + np.exp(0.3 * x[:, 1]) * rng.normal(size=count)
        frame.to_parquet(path) if form == "parquet" else frame.to_csv(path, index=False)
        command = [sys.executable, "-c", MEASURE, "fit", path, "--target", "y", "--stream"]
        command += ["--epochs", "1", "--quiet", "--out", tmp_path / f"fit{count}"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout.split()[-1])
        scores = json.loads((tmp_path / f"fit{count}" / "summary.json").read_text())["scores"]
        assert scores[0]["nll"] < scores[2]["nll"]
        path.unlink()
    print(peaks)
    assert peaks[2_000_000] < peaks[200_000] + 400
