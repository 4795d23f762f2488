"""The command line, as a new user would use and misuse it."""

import io
import json
import os
import pathlib
import re
from contextlib import redirect_stdout

import jax
import numpy as np
import pandas as pd
import pytest

import jaxmdn
from jaxmdn import cli, export
from jaxmdn.cli import _keep_compiled as keep_compiled
from jaxmdn.cli import demo, evaluate, training
from jaxmdn.cli import predict as predicting
from jaxmdn.cli.reading import read_table
from jaxmdn.cli.targets import families_of
from jaxmdn.cli.trained import Trained

pytestmark = pytest.mark.usefixtures("as_users_run")


def table(count=120, seed=0):
    rng = np.random.default_rng(seed)
    size = rng.normal(size=count)
    kind = rng.choice(["house", "flat", "hut"], count)
    price = 100 + 20 * size + 15 * (kind == "house") + rng.normal(size=count)
    return pd.DataFrame(
        {
            "row": np.arange(count),
            "size": size,
            "kind": kind,
            "note": [f"text {i}" for i in range(count)],
            "country": "X",
            "price": price,
            "rent": 0.1 * price + rng.normal(size=count),
        }
    )


def corrupt(column, value, row=4):
    frame = table()
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table().to_csv("table.csv", index=False)
    return tmp_path


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def odd(count=150, seed=0):
    """A table as it came: gaps, dates, keys, units, names of things."""
    frame = table(count, seed).drop(columns=["row", "rent"])
    rng = np.random.default_rng(seed + 10)
    frame.insert(0, "deal id", rng.permutation(count) + 1000)
    frame["sold on"] = [f"{i % 28 + 1:02}.{i % 12 + 1:02}.2020" for i in range(count)]
    frame["cost"] = [
        f"{value:.2f} EUR".replace("EUR", "\u20ac") for value in rng.uniform(9, 10, count)
    ]
    frame["seller"] = [f"s{i % 9}" for i in range(count)]
    frame.loc[::7, "size"] = np.nan
    frame.loc[::11, "kind"] = None
    return frame


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """One fit, for many questions; what it printed."""
    folder = tmp_path_factory.mktemp("fitted")
    frame = odd()
    frame.loc[3, "price"] = np.nan
    frame.to_csv(folder / "odd.csv", sep=";", decimal=",", index=False, encoding="cp1252")
    (folder / "run.toml").write_text(
        f'file = "{folder}/odd.csv"\ntarget = ["price"]\nsplit-by = "seller"\nepochs = 999\n'
        'encoding = "cp1252"\nquiet = true\ndrop = ["cost"]\n'
    )
    text = io.StringIO()
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), redirect_stdout(text):
        code = run("fit", "--config", folder / "run.toml", "--out", folder / "fit",
                   "--decimal", ",", "--epochs", 40)  # fmt: skip
    assert code == 0
    return folder, text.getvalue()


def test_what_is_said_and_written(fitted):
    folder, printed = fitted
    for line in (
        "odd.csv: 149 rows", "note: text with 150 distinct values", "country: it is constant (X)",
        "deal id: it seems to be a key (--keep deal id", "sold on: in days, read as %d.%m.%Y",
        "categorical  kind", "seller: keeps rows together", "cost: left out with --drop",
        "1 rows lack a target",
    ):  # fmt: skip
        assert line in printed
    assert sorted(os.listdir(folder / "fit")) == [
        "components.png", "densities.png", "held_back.csv", "model", "pit.png", "predictions.png",
        "reliability.png", "summary.json", "training.png",
    ]  # fmt: skip
    summary = json.loads((folder / "fit" / "summary.json").read_text())
    assert summary["options"]["epochs"] == 40  # the command line counts, not the file
    network, same, _ = summary["scores"]
    assert (network["model"], same["model"]) == ("network", "same for every row")
    assert np.isfinite(list(network.values())[2:]).all()
    assert {"nll", "crps", "coverage_90%", "hdr_90%", "pit test p"} <= set(network)
    assert network["nll"] < same["nll"]
    sellers = np.arange(150) % 9
    held = set(sellers[np.array(summary["held_back_rows"]) - 1])
    assert not held & set(np.delete(sellers, np.array(summary["held_back_rows"]) - 1))
    assert len(pd.read_csv(folder / "fit" / "held_back.csv")) == summary["test_rows"]


def test_predict_what_training_did_not_see(fitted, tmp_path, monkeypatch, capsys):
    """In the file's own format; an unknown category counts as none, a new gap has no answer."""
    monkeypatch.setattr(predicting, "PIECE", 16)
    folder = fitted[0] / "fit"
    new = odd(30, seed=1)
    new["size"] = new["size"].fillna(0.5)
    path, out = tmp_path / "new.csv", tmp_path / "predicted.csv"

    def predict(frame, *options):
        frame.to_csv(path, sep=";", decimal=",", index=False, encoding="cp1252")
        assert run("predict", folder, path, "--out", out, *options) == 0
        return pd.read_csv(out)

    options = ["--keep", "deal id", "--quantile", 0.5, "--interval", 0.9, "--region", 0.9]
    found = predict(new, *options, "--samples", 2, "--parameters")
    assert list(found.columns[:9]) == [
        "deal id", "price_mean", "price_sd", "price_q0.5", "price_0.9_low", "price_0.9_high",
        "price_hdr0.9_low1", "price_hdr0.9_high1", "price_hdr0.9_low2",
    ]  # fmt: skip
    assert (found["deal id"] == new["deal id"]).all()
    assert np.abs(found["price_mean"] - new["price"]).mean() < 15
    assert new["price"].between(found["price_0.9_low"], found["price_0.9_high"]).mean() > 0.5
    weights = found[[f"weights_{k}" for k in range(1, 6)]].to_numpy()
    locations = found[[f"components.loc_{k}_1" for k in range(1, 6)]].to_numpy()
    np.testing.assert_allclose((weights * locations).sum(axis=1), found["price_mean"], rtol=1e-5)
    draws = found[["price_draw1", "price_draw2"]].to_numpy()
    assert (np.abs(draws.T - found["price_mean"].values) < 8 * found["price_sd"].values).all()

    changed = new.drop(columns=["price", "cost", "seller"])
    changed.loc[2, "sold on"], changed.loc[4, "kind"] = None, "castle"
    capsys.readouterr()
    bare = predict(changed)
    noted = capsys.readouterr().err
    assert "'sold on' is empty in 1 row(s), but never was in training" in noted
    assert "'castle'" in noted
    assert list(bare.columns) == ["price_mean", "price_sd"]
    assert bare["price_mean"].isna().to_numpy().nonzero()[0].tolist() == [2]
    same = [i for i in range(30) if i not in (2, 4)]
    np.testing.assert_allclose(bare["price_mean"][same], found["price_mean"][same], rtol=1e-6)

    for frame, message in (
        (new.drop(columns="size"), "there is no input column 'size'"),
        (new.assign(size="tall"), "column 'size' must be numeric, but 30 of its cells are not"),
        (new.assign(**{"sold on": "soon"}), "'sold on' holds dates (%d.%m.%Y), but data row 1 is"),
    ):
        frame.to_csv(path, sep=";", decimal=",", index=False, encoding="cp1252")
        assert run("predict", folder, path) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
    with pytest.raises(SystemExit):
        run("predict", folder, path, "--quantile", 1.5)
    assert "must lie between 0 and 1, got 1.5" in capsys.readouterr().err


def test_report_is_one_page(fitted, tmp_path):
    folder = fitted[0] / "fit"
    assert run("report", folder, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)  # nothing from elsewhere
    assert text.count('src="data:image/png;base64,') == 7
    for part in ("<h1>price</h1>", "linear Gaussian", "What each input is worth", "data row"):
        assert part in text
    assert not (folder / "report.html").exists()
    assert run("report", tmp_path) == 2


def test_export_takes_the_table(fitted, tmp_path, capsys):
    folder = fitted[0] / "fit"
    assert run("export", folder, tmp_path / "out", "--format", "numpy") == 0
    printed = capsys.readouterr().out
    assert "input   size\ninput   kind: 0 flat, 1 house, 2 hut\n" in printed
    assert "input   sold on: days since 1970-01-01\ntargets price\n" in printed
    trained = Trained.load(str(folder))
    frame = read_table(fitted[0] / "odd.csv", trained.form)
    expected = np.asarray(jaxmdn.mean(trained.predict(frame)))
    means = export.archive.reader.load(tmp_path / "out").mean(trained.inputs.prepare(frame))
    np.testing.assert_allclose(means, expected, rtol=1e-4)
    assert run("export", folder, tmp_path / "out") == 2  # it exists
    assert run("export", folder, tmp_path / "other", "--output", "quantiles") == 2
    assert "--quantile 0.05" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        (["--target", "n:negative_binomial"], ["n_mean", "n_sd", "log_probability"]),
        (["--target", "kind:classes"], ["kind", "kind=flat", "kind=house", "kind=hut"]),
        (["--target", "price:lognormal", "--target", "n:hurdle(base=poisson)", "--weights", "w"],
         ["price_mean", "price_sd", "n_mean"]),
        (["--target", "price", "--ensemble"], ["price_mean", "price_sd", "log_density"]),
        (["--target", "kind:classes", "--ensemble"], ["kind", "kind=flat"]),
        (["--target", "n:poisson", "--ensemble", "--time", "day"], ["n_mean", "n_sd"]),
        (["--target", "rent", "--target", "price", "--ensemble", "--split-by", "seller"],
         ["rent_mean", "rent_sd", "price_mean"]),
        (["--target", "price", "--time", "day", "--format", "svg"], ["price_mean"]),
    ],
)  # fmt: skip
def test_every_kind_of_target_and_split(folder, user_errors, arguments, columns):
    frame = table(100)
    frame["n"] = np.random.default_rng(0).poisson(np.exp(1 + 0.5 * frame["size"]))
    frame["day"] = pd.date_range("2020-01-01", periods=100)[::-1]
    frame["seller"] = [f"s{i % 12}" for i in range(100)]
    frame.loc[::6, "size"] = np.nan
    frame.assign(w=1.0).to_parquet("table.parquet")
    options = ["--epochs", 3, "--components", 2, "--hidden", 8, "--quiet"]
    assert run("fit", "table.parquet", *arguments, *options) == 0
    summary = json.loads(pathlib.Path("fit/summary.json").read_text())
    assert all(value is not None for row in summary["scores"] for value in row.values())
    if "--time" in arguments:
        assert sorted(summary["held_back_rows"]) == list(range(1, 21))
    assert run("predict", "fit", "table.parquet", "--out", "new.csv", "--samples", 1) == 0
    assert set(columns) <= set(pd.read_csv("new.csv"))
    assert run("report", "fit") == 0
    assert run("report", "fit", "--table", "table.parquet", "--out", "all.html") == 0
    assert run("export", "fit", "out", "--output", "parameters") == 0


@pytest.mark.nightly
def test_a_fit_is_saved_while_it_goes_on_and_taken_up_again(folder):
    options = ["--target", "price", "--quiet", "--checkpoint", "run", "--seed", 3]
    assert run("fit", "table.csv", *options, "--epochs", 3) == 0
    assert run("fit", "table.csv", *options, "--epochs", 6, "--resume", "--out", "again") == 0
    once = [*options[:3], "--seed", 3, "--epochs", 6, "--out", "once"]
    assert run("fit", "table.csv", *once) == 0
    again, straight = (
        json.loads(pathlib.Path(name, "summary.json").read_text())["scores"][0]
        for name in ("again", "once")
    )
    assert again == straight


def test_fit_several_targets(folder, capsys):
    code = run(
        "fit", "table.csv", "--target", "rent", "--target", "price", "--epochs", 3, "--quiet",
        "--out", "two", "--drop", "note", "--components", 2, "--hidden", 8,
    )  # fmt: skip
    assert code == 0
    summary = json.loads((folder / "two" / "summary.json").read_text())
    assert [row["target"] for row in summary["scores"]] == ["rent", "price"] * 3
    assert summary["dropped"]["note"] == "left out with --drop"
    assert json.loads((folder / "two/model/config.json").read_text())["model"]["head"][
        "covariance"
    ] == "full"  # fmt: skip


def test_targets_with_a_colon_in_their_name():
    frame = pd.DataFrame(columns=["a:b", "price"])
    assert families_of(frame, ["a:b", "price:gamma"]) == {"a:b": "", "price": "gamma"}
    assert families_of(frame, ["a:b:gamma"]) == {"a:b": "gamma"}


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, ["--target", "price"], "there is no file bad.csv"),
        ("", ["--target", "price"], "bad.csv is empty"),
        ("a,b\n", ["--target", "a"], "has a header but no rows"),
        ("a,b\n1,2,3\n4\n5,6,7,8,9\n", ["--target", "a"], "cannot be read as a CSV table"),
        ("# made by\na,b\n1,2\n", ["--target", "a"], "is there text above the header"),
        ("a,b,a\n1,2,3\n", ["--target", "a"], "two columns named 'a'; rename one"),
        ("1,2\n3,4\n", ["--target", "a"], "has only numbers in its first line"),
        ("häuser,b\n1,2\n".encode("latin-1"), ["--target", "b"], "line 1 holds the byte 0xe4"),
        (b"PK\x03\x04" + bytes(30), ["--target", "b"], "is a spreadsheet or an archive"),
        (table(), ["--target", "price", "--encoding", "klingon"], "there is no such encoding"),
        (table(), ["--target", "cost"], "there is no target column 'cost'; the columns are: row"),
        (table(), ["--target", "kind"], "If it is a class, pass --target kind:classes"),
        (table(), ["--target", "kind:classes", "--target", "price"], "must be the only target"),
        (table(), ["--target", "price:student_t(d=4)"], "constants must be one of 'df'; got 'd'"),
        (table().assign(price=np.nan), ["--target", "price"], "the target column 'price' is empty"),
        (table(), ["--target", "price", "--split-by", "kind", "--time", "size"], "exclude each"),
        (table(), ["--target", "price", "--split-by", "country"], "there is a single group"),
        (table(), ["--target", "price", "--time", "kind"], "numbers, or dates such as 2024-12-31"),
        (corrupt("size", np.nan), ["--target", "price", "--time", "size"], "row 5 has no time"),
        (
            table().assign(size=np.where(np.arange(120) < 96, table()["size"], np.nan)),
            ["--target", "price", "--time", "row"],
            "all held-back rows have a gap in a column",
        ),
        (table(), ["--target", "price", "--resume"], "pass --checkpoint DIR, too"),
        (table(), ["--target", "price", "--ensemble", "--patience", "3"], "for a single network"),
        (corrupt("size", "?"), ["--target", "price"], "pass --missing '?'; else --categorical"),
        (corrupt("size", -np.inf), ["--target", "price"], "'size' is infinite in 1 row(s), the"),
        ("", [], "name what to predict: --target COLUMN"),
        (table(), ["--target", "price", "--target", "price"], "named twice"),
        (table(), ["--target", "price", "--drop", "nope"], "there is no --drop column 'nope'"),
        (table(), ["--target", "Price"], "Did you mean 'price'?"),
        (table(), ["--target", "price", "--drop", "price"], "both --target and --drop"),
        (table().assign(price=table().price + 1e8), ["--target", "price"], "subtract a constant"),
        (table()[["price"]], ["--target", "price"], "the table has nothing but targets"),
        (table(), ["--target", "price", "--min-weight", "0.5"], "min_weight must lie in"),
        (table(), ["--target", "price", "--out", "."], "was not written by jaxmdn fit"),
        (table(), ["--target", "price", "--test", "1.5"], "--test must lie between 0 and 1"),
        (table(), ["--target", "price", "--sep", ";"], "is it another separator? Pass --sep"),
        (table(5), ["--target", "price"], "the table has 5 row(s); at least 20 are needed"),
        (table().assign(price=3.0), ["--target", "price"], "'price' is constant"),
        (table()[["row", "price"]], ["--target", "price"], "no input column is left: row: it only"),
        (corrupt("price", np.inf), ["--target", "price"], "column 'price' is infinite in 1 row"),
        (corrupt("price", "n/k"), ["--target", "price"], "pass --missing 'n/k'"),
        (table(), ["--target", "price:lognorm"], "there is no family 'lognorm'; for example price"),
        (table().assign(price=-1.0 * table().price), ["--target", "price:gamma"], "outside the"),
        (
            table().assign(price=table().price + 0.5).to_csv(sep=";", decimal=",", index=False),
            ["--target", "price", "--sep", ";"],
            "pass --decimal ,",
        ),
        (table(), ["--target", "price", "--decimal", ","], "other than the separator"),
        (table(), ["--target", "price", "--weights", "nope"], "there is no --weights column"),
        (table(), ["--target", "price", "--weights", "price"], "both --target and --weights"),
        (table().assign(w=-1.0), ["--target", "price", "--weights", "w"], "data row 1 holds -1.0"),
    ],
)  # fmt: skip
def test_fit_errors_are_one_line_and_write_nothing(folder, capsys, content, arguments, message):
    if isinstance(content, (str, bytes)):
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "bad.csv").write_bytes(data)
    elif content is not None:
        content.to_csv("bad.csv", index=False)
    before = sorted(os.listdir())
    code = run("fit", "bad.csv", *arguments, "--quiet")
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.startswith("jaxmdn fit: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(os.listdir()) == before


def test_existing_output_is_kept(folder, capsys):
    (folder / "fit").mkdir()
    (folder / "fit" / "thesis.txt").write_text("years of work")
    for force in ([], ["--force"]):
        assert run("fit", "table.csv", "--target", "price", "--quiet", *force) == 2
        assert "was not written by jaxmdn fit" in capsys.readouterr().err
    assert (folder / "fit" / "thesis.txt").read_text() == "years of work"


@pytest.fixture
def untrained(fitted, tmp_path, monkeypatch):
    """``fit`` of the odd table without its training: the options."""
    trained = Trained.load(str(fitted[0] / "fit"))
    monkeypatch.setattr(training, "one_network", lambda *_: trained.result)
    monkeypatch.chdir(tmp_path)
    return ["fit", "--config", fitted[0] / "run.toml", "--decimal", ","]


def test_failure_while_writing_leaves_nothing(untrained, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(evaluate, "save_figure", fail)
    assert run(*untrained) == 2
    assert "disk full" in capsys.readouterr().err
    assert os.listdir() == []


def test_force_replaces_only_what_fit_wrote(untrained, tmp_path, capsys):
    assert run(*untrained) == 0
    assert run(*untrained) == 2
    assert "pass --force" in capsys.readouterr().err
    (tmp_path / "fit" / "thesis.txt").write_text("years of work")
    assert run(*untrained, "--force") == 2
    assert "thesis.txt" in capsys.readouterr().err
    (tmp_path / "fit" / "thesis.txt").unlink()
    assert run(*untrained, "--force") == 0


def test_predict_keeps_the_table_and_says_which_rows_have_no_target(fitted, tmp_path, capsys):
    model, path = fitted[0] / "fit", fitted[0] / "odd.csv"
    before = path.read_bytes()
    assert run("predict", model, path, "--out", path) == 2
    assert path.read_bytes() == before
    assert run("predict", model, path, "--out", tmp_path / "no" / "where.csv") == 2
    capsys.readouterr()
    assert run("predict", model, path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].endswith(",")
    assert not lines[5].endswith(",")


@pytest.mark.parametrize("option", ["--epochs", "--patience", "--batch-size", "--components"])
def test_options_are_checked_before_anything_else(folder, capsys, option):
    with pytest.raises(SystemExit) as info:
        run("fit", "table.csv", "--target", "price", option, "0")
    assert info.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_large_offsets_cost_nothing(fitted, tmp_path):
    """Time stamps and account numbers: float32 cannot hold them, the scores must not notice."""
    scores = []
    for offset in (0.0, 1.7e9):
        frame = odd().drop(index=3)
        frame["size"] += offset
        path, out = tmp_path / "big.csv", tmp_path / f"out{offset:.0f}"
        frame.to_csv(path, sep=";", decimal=",", index=False, encoding="cp1252")
        options = ["--config", fitted[0] / "run.toml", "--decimal", ",", "--epochs", 5]
        assert run("fit", path, *options, "--out", out) == 0
        scores.append(json.loads((out / "summary.json").read_text())["scores"][0])
    assert scores[1]["nll"] == pytest.approx(scores[0]["nll"], abs=2e-3)


def test_predict_errors(folder, capsys):
    assert run("predict", "nowhere", "table.csv") == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cli.cache_folder()
    assert folder.parent == tmp_path / "cache" / "jaxmdn"
    assert folder.is_dir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    assert cli.cache_folder() == tmp_path / ".cache" / "jaxmdn" / folder.name
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli.cache_folder() is None

    updated = {}
    monkeypatch.setattr(jax.config, "update", updated.__setitem__)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "my/own")
    keep_compiled("demo")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    keep_compiled("demo")  # where no folder can be made
    assert updated == {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_compiled("demo")
    assert updated["jax_compilation_cache_dir"] == str(folder)
    keep_compiled("bench")
    assert updated["jax_enable_compilation_cache"] is False


def test_help_and_usage(capsys):
    with pytest.raises(SystemExit) as info:
        run("--help")
    assert info.value.code == 0
    printed = capsys.readouterr().out
    assert "demo" in printed
    assert "$XDG_CACHE_HOME/jaxmdn" in printed
    with pytest.raises(SystemExit) as info:
        run("fit", "table.csv", "--nonsense")
    assert info.value.code == 2


def test_linear_gaussian_against_closed_form():
    """The baseline's density is the least-squares normal's (NumPy oracle)."""
    from scipy import stats

    rng = np.random.default_rng(0)
    x, x_new = rng.normal(size=(50, 2)), rng.normal(size=(4, 2))
    y = x @ [[1.0, 2.0], [3.0, 4.0]] + rng.normal(size=(50, 2))
    design = np.c_[x, np.ones(50)]
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    residuals = y - design @ beta
    covariance = residuals.T @ residuals / (50 - 3)
    loc = np.c_[x_new, np.ones(4)] @ beta
    density = evaluate.linear_gaussian(x, y, x_new)
    values = jaxmdn.log_prob(density, np.zeros((4, 2), np.float32))
    expected = [stats.multivariate_normal.logpdf(np.zeros(2), m, covariance) for m in loc]
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_table_lines_up():
    text = evaluate.format_table(
        [{"model": "long name", "nll": -1.25}, {"model": "b", "nll": 12345.0}]
    )
    header, rule, *rows = text.splitlines()
    assert len({len(line) for line in (header, rule, *rows)}) == 1
    assert "-1.250" in rows[0]
    assert "1.23e+04" in rows[1]


def check_inverse_problem(summary, folder):
    scores = {row["model"]: row for row in summary["scores"]}
    assert abs(scores["mixture of 10 normals"]["gap to exact"]) <= 0.05
    assert scores["a single normal"]["gap to exact"] > 0.5
    assert sorted(path.name for path in folder.glob("inverse_*")) == [
        "inverse_components.png", "inverse_density.png", "inverse_pit.png", "inverse_region.png",
        "inverse_training.png",
    ]  # fmt: skip


@pytest.mark.optimised
def test_demo_inverse_problem_is_within_a_twentieth_nat(tmp_path, monkeypatch):
    """The demo's claim, with a third of its epochs and a fifth of its test rows."""
    monkeypatch.setattr(demo, "EPOCHS", 40)
    monkeypatch.setattr(demo, "TEST_ROWS", 2000)
    check_inverse_problem(demo.inverse_problem(0, tmp_path, progress=False), tmp_path)


@pytest.mark.nightly
def test_demo_whole(tmp_path):
    """The same at full size, and the diabetes data with its figures."""
    assert run("demo", "--out", tmp_path / "demo", "--quiet") == 0
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    check_inverse_problem(summary["inverse_problem"], tmp_path / "demo")
    network, linear = summary["diabetes"]["scores"]
    assert (network["model"], linear["model"]) == (
        "mixture density network x 2", "linear Gaussian"
    )  # fmt: skip
    assert network["nll"] == pytest.approx(5.365, abs=0.01)
    assert linear["nll"] == pytest.approx(5.420, abs=0.001)
    assert summary["seconds"] < 120
    assert len(list((tmp_path / "demo").glob("*.png"))) == 9


@pytest.mark.nightly
def test_real_concrete_data(tmp_path, monkeypatch):
    """As a new user would: the UCI concrete table, converted to CSV."""
    data = os.environ.get("JAXMDN_DATA")
    if not data:
        pytest.skip("set JAXMDN_DATA to a folder with uci/concrete/data.txt")
    monkeypatch.chdir(tmp_path)
    values = np.loadtxt(os.path.join(data, "uci", "concrete", "data.txt"))
    names = [*(f"x{i}" for i in range(8)), "strength"]
    pd.DataFrame(values, columns=names).to_csv("concrete.csv", index=False)
    assert run("fit", "concrete.csv", "--target", "strength", "--quiet") == 0
    network, _, linear = json.loads((tmp_path / "fit" / "summary.json").read_text())["scores"]
    assert network["nll"] < 3.3 < linear["nll"]
    assert 0.8 < network["coverage_90%"] < 1.0
