"""Tables as they come: how files are read, what columns are, which rows are held back. No fits."""

import argparse
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from jaxmdn.cli import config
from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.inputs import detect
from jaxmdn.cli.reading import Format, read_table
from jaxmdn.cli.split import held_back
from jaxmdn.cli.targets import Targets, parse_family
from jaxmdn.heads import Family

ROWS = [(1000.5 + 37.25 * i, i % 7, 1.5 * i) for i in range(30)]


def written(cells, separator=",", names=("a", "b", "y")):
    lines = [separator.join(names), *(separator.join(map(str, row)) for row in cells)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (written(ROWS), {}),
        (written(ROWS, ";"), {}),
        (written(ROWS, "\t"), {}),
        (written(ROWS, "|"), {}),
        (written(ROWS, "\t"), {"sep": "tab"}),
        (written(ROWS, ", ", ('"a"', '" b"', '"y"')), {}),
        (written(ROWS) + "\n\n\n", {}),
        (written([*ROWS, ("", "", ""), ("", "", "")]), {}),
        (written(ROWS, ";").replace(".", ","), {"decimal": ","}),
        (written([(f'"{a:,}"', b, y) for a, b, y in ROWS]), {"thousands": ","}),
        (written([(f'"${a:,}"', f"{b} %", y) for a, b, y in ROWS]), {"thousands": ","}),
        (
            written([(f"{a:,} EUR".translate({44: "'"}), b, y) for a, b, y in ROWS]).replace(
                "EUR", "\u20ac"
            ),
            {"thousands": "'", "encoding": "cp1252"},
        ),
        ("\ufeff" + written(ROWS), {}),
        (written(ROWS).replace("\n", "\r\n"), {}),
        (written(ROWS), {"encoding": "utf-16"}),
    ],
)
def test_one_table_in_many_hands(tmp_path, text, form):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(form.get("encoding", "utf-8")))
    frame = read_table(path, Format(**form))
    assert list(frame.columns) == ["a", "b", "y"]
    np.testing.assert_array_equal(frame.to_numpy(float), ROWS)


def test_utf_16_is_seen_and_parquet_keeps_its_types(tmp_path):
    (tmp_path / "a.csv").write_bytes(written(ROWS).encode("utf-16"))
    assert len(read_table(tmp_path / "a.csv")) == 30
    frame = pd.DataFrame(ROWS, columns=["a", "b", "y"]).assign(
        day=pd.date_range("2020-01-01", periods=30), kind=pd.Categorical(["u", "v", None] * 10)
    )
    frame.to_parquet(tmp_path / "a.parquet")
    found = detect(read_table(tmp_path / "a.parquet"), {"y": ""})
    assert found.kinds == {"a": "number", "b": "number", "day": "ISO8601", "kind": "category"}
    assert found.prepare(frame)["day"].tolist() == [18262.0 + i for i in range(30)]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="cannot be read as a Parquet table"):
        read_table(tmp_path / "bad.parquet")


def kinds(values, **options):
    """The kind of a column, or why it is none."""
    frame = pd.DataFrame({"it": values, "b": np.arange(len(values)) % 7})
    found = detect(frame, {}, **options)
    return found.kinds.get("it") or found.dropped["it"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, False] * 15, "number"),
        ([True, None] * 15, "number"),
        ([1.5, None] * 15, "number"),
        ([Decimal("1.5"), None, 2] * 10, "number"),
        (["u", "v", None] * 10, "category"),
        (["2024-01-01", "2024-02-03T12:00"] * 15, "ISO8601"),
        (["01.02.2024", "31.12.2024"] * 15, "%d.%m.%Y"),
        (["01/02/2024", "12/31/2024"] * 15, "%m/%d/%Y"),
        (["01/02/2024", "31/12/2024"] * 15, "%d/%m/%Y"),
        (["1 May 2024", None, "3 May 2024"] * 10, "%d %b %Y"),
        (["01/02/2024", "03/04/2024"] * 15, "dates such as 01/02/2024 are ambiguous: %d/%m/%Y or"),
        ([f"text {i}" for i in range(30)], "text with 30 distinct values (more than 20)"),
        ([None] * 30, "it is empty"),
        (["x"] * 30, "it is constant (x)"),
        (list(range(30)), "it only numbers the rows"),
        ([["a", "b"]] * 30, "it holds list objects"),
    ],
)
def test_kinds_of_columns(values, kind):
    assert kinds(values).startswith(kind)


def test_columns_are_what_the_user_says():
    codes = [10115 + 7 * (i % 4) for i in range(30)]
    assert kinds(codes) == "number"
    assert kinds(codes, categorical=["it"]) == "category"
    text = [f"text {i}" for i in range(30)]
    assert kinds(text, keep=["it"]) == "category"
    frame = pd.DataFrame({"order_id": np.arange(30) * 7 % 101, "b": np.arange(30) % 7})
    assert list(detect(frame, {}).kinds) == ["b"]
    assert list(detect(frame, {}, keep=["order_id"]).kinds) == ["order_id", "b"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1,5", "2,25"] * 15, "is a decimal comma, pass --decimal , and if"),
        (["1,000", "950", "12,000,000"] * 10, "--thousands ,"),
        (["1,000.5", "950"] * 15, "--thousands ,"),
        (
            ["?", *map(str, range(29))],
            "the first in data row 1: '[?]'. If that stands for an empty",
        ),
        ([np.inf, *range(29)], "is infinite in 1 row"),
    ],
)
def test_numbers_that_are_none(values, message):
    with pytest.raises(UsageError, match=message):
        kinds(values)


def test_classes_are_numbered_in_order():
    frame = pd.DataFrame(
        {"k": ["b", "a", None, "b"], "n": [2.0, 1.0, np.nan, 2.0], "t": [1, 0, 1, 1]}
    )
    targets = Targets.of(frame, ["k:classes"])
    assert targets.classes == ["a", "b"]
    np.testing.assert_array_equal(targets.values(frame), [[1], [0], [np.nan], [1]])
    assert Targets.of(frame, ["n:classes"]).classes == ["1", "2"]
    assert Targets.of(frame.astype({"t": bool}), ["t:classes"]).classes == ["False", "True"]


def test_families_with_constants():
    assert parse_family("student_t(df=4)") == Family("student_t", df=4)
    assert parse_family("truncated_normal(lower=0, upper=1.5)") == Family(
        "truncated_normal", lower=0, upper=1.5
    )
    assert parse_family("hurdle(base=gamma)") == Family("hurdle", base="gamma")


def test_rows_are_held_back():
    assert held_back(100, 0.2, 0).sum() == 20
    assert held_back(20, 0.001, 0).sum() == 1
    assert held_back(20, 0.999, 0).sum() == 18
    assert (held_back(100, 0.2, 1) != held_back(100, 0.2, 2)).any()
    times = np.array([5.0, 1, 1, 4, 3, 5, 2, 0, 0, 0])
    assert held_back(10, 0.1, 0, times=times).tolist() == [i in (0, 5) for i in range(10)]
    with pytest.raises(UsageError, match="the same time"):
        held_back(10, 0.1, 0, times=np.ones(10))
    for seed in range(20):
        groups = np.random.default_rng(seed).integers(0, 6, 60).astype(str)
        chosen = held_back(60, 0.3, seed, groups=groups)
        assert not set(groups[chosen]) & set(groups[~chosen])
        assert 18 <= chosen.sum() <= 18 + np.unique(groups, return_counts=True)[1].max()
    assert held_back(4, 0.9, 0, groups=np.array(["a", "a", "b", "b"])).sum() == 2
    with pytest.raises(UsageError, match="there is a single group"):
        held_back(4, 0.5, 0, groups=np.array(["a"] * 4))


def parser():
    found = argparse.ArgumentParser()
    commands = found.add_subparsers(dest="command")
    own = commands.add_parser("fit")
    own.add_argument("file", nargs="?")
    own.add_argument("--config")
    own.add_argument("--target", action="append", default=[])
    own.add_argument("--hidden", type=int, nargs="+", action="extend")
    own.add_argument("--max-categories", type=int, default=20)
    own.add_argument("--quiet", action="store_true")
    return found


def test_options_from_a_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'file = "a.csv"\ntarget = ["x", "y:gamma"]\nhidden = [8, 4]\nmax_categories = 3\n'
        "quiet = true\n"
    )
    found = config.expand(parser(), ["fit", "--config", str(path), "--target", "z"])
    assert (found.file, found.target, found.hidden) == ("a.csv", ["z"], [8, 4])
    assert (found.max_categories, found.quiet) == (3, True)
    found = config.expand(parser(), ["fit", "b.csv", "--config", str(path), "--hidden", "2", "3"])
    assert (found.file, found.hidden) == ("b.csv", [2, 3])
    for text, message in (
        ("targets = 1", "has no option 'targets'. Did you mean 'target'"),
        ("[fit]\nquiet = true", r"has no option 'fit'"),
        ("quiet = tru", "cannot be read"),
        ("[target]\na = 1", "is a section; name options at the top"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            config.expand(parser(), ["fit", "--config", str(path)])
    with pytest.raises(UsageError, match="cannot be read"):
        config.expand(parser(), ["fit", "--config", str(tmp_path / "none.toml")])


def mangled(rng):
    """A table that something happened to: cells, lines, bytes."""
    cells = [list(map(str, row)) for row in ROWS]
    odd = [
        "",
        "NA",
        "inf",
        "-",
        "?",
        "1e999",
        "1,5",
        '"',
        "\u20ac",
        "2020-02-30",
        "True",
        "x" * 300,
        "0x1F",
    ]
    for _ in range(rng.integers(0, 3)):
        cells[rng.integers(30)][rng.integers(3)] = odd[rng.integers(len(odd))]
    if rng.random() < 0.1:  # a whole column
        column, text = rng.integers(3), odd[rng.integers(len(odd))]
        for row in cells:
            row[column] = text
    lines = ["a,b,y", *(",".join(row) for row in cells)]
    for _ in range(rng.integers(0, 2)):
        del lines[rng.integers(len(lines))]
    for _ in range(rng.integers(0, 2)):
        lines.insert(
            rng.integers(len(lines)), ["", ",,", ",,,", "a,b,y", ";", "# text"][rng.integers(6)]
        )
    data = bytearray("\n".join(lines).encode())
    for _ in range(rng.integers(0, 2)):
        data[rng.integers(len(data))] = rng.integers(128)
    return bytes(data[: rng.integers(len(data))] if rng.random() < 0.1 else data)


def test_a_hundred_tables_that_something_happened_to(tmp_path):
    """Each is understood, or refused in one line that says why."""
    rng, path, refused = np.random.default_rng(0), tmp_path / "table.csv", []
    for number in range(150):
        path.write_bytes(mangled(rng))
        try:
            frame = read_table(path)
            targets = Targets.of(frame, ["y" if number % 3 else "y:classes"])
            found = detect(frame, dict.fromkeys(targets.names, ""))
            assert len(found.prepare(frame)) == len(targets.values(frame)) == len(frame)
        except UsageError as error:
            refused.append(str(error))
    assert 40 < len(refused) < 140
    assert len({line[:40] for line in refused}) > 3
    assert all("\n" not in line and 20 < len(line) < 500 for line in refused)
