"""The command line, as a new user would use and misuse it."""

import json
import os

import jax
import numpy as np
import pandas as pd
import pytest

from jaxmdn import cli, export
from jaxmdn.cli import _keep_compiled as keep_compiled
from jaxmdn.cli import demo, evaluate
from jaxmdn.cli.table import Encoding, detect, families_of, read_table
from jaxmdn.train import checkpoint

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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table().to_csv("table.csv", index=False)
    return tmp_path


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_fit_and_predict(folder, capsys):
    code = run("fit", "table.csv", "--target", "price", "--epochs", 40, "--quiet")
    assert code == 0
    printed = capsys.readouterr().out
    assert "row: it only numbers the rows" in printed
    assert "note: text with 120 distinct values" in printed
    assert "country: it is constant (X)" in printed
    assert "kind: flat, house, hut" in printed
    assert sorted(os.listdir("fit")) == [
        "components.png", "densities.png", "model", "pit.png", "predictions.png",
        "reliability.png", "summary.json", "training.png",
    ]  # fmt: skip
    summary = json.loads((folder / "fit" / "summary.json").read_text())
    network, _ = summary["scores"]
    assert network["model"] == "mixture density network"
    assert np.isfinite(list(network.values())[2:]).all()
    assert {"nll", "crps", "coverage_90%", "hdr_90%", "pit test p"} <= set(network)
    assert summary["test_rows"] == 24

    new = table(30, seed=1)
    new.to_csv("new.csv", index=False)
    assert run("predict", "fit", "new.csv", "--out", "predicted.csv") == 0
    predicted = pd.read_csv("predicted.csv")
    assert list(predicted.columns) == ["price_mean", "price_sd", "log_density"]
    assert np.abs(predicted["price_mean"] - new["price"]).mean() < 15
    # Quantiles: a share of about p of the actual prices lies below each.
    run("predict", "fit", "new.csv", "--out", "q.csv", "--quantile", 0.05, "--quantile", 0.95)
    predicted = pd.read_csv("q.csv")
    assert list(predicted.columns)[2:4] == ["price_q0.05", "price_q0.95"]
    assert (predicted["price_q0.05"] < predicted["price_mean"]).all()
    inside = new["price"].between(predicted["price_q0.05"], predicted["price_q0.95"])
    assert inside.mean() > 0.5
    with pytest.raises(SystemExit):
        run("predict", "fit", "new.csv", "--quantile", 1.5)
    assert "must lie between 0 and 1, got 1.5" in capsys.readouterr().err
    capsys.readouterr()
    assert run("export", "fit", "out", "--format", "numpy") == 0
    assert "kind=flat, kind=house, kind=hut\ntargets price\n" in capsys.readouterr().out
    encoding = Encoding(**checkpoint.load_notes("fit/model")["encoding"])
    means = export.archive.reader.load("out").mean(encoding.inputs(new))[:, 0]
    np.testing.assert_allclose(means, predicted["price_mean"], rtol=1e-4)
    assert run("export", "fit", "out") == 2  # it exists
    assert run("export", "fit", "other", "--output", "quantiles") == 2
    assert "--quantile 0.05" in capsys.readouterr().err
    assert not os.path.exists("other")
    # Without the target, and with a category never seen: no density, but a prediction.
    new.assign(kind="castle").drop(columns="price").to_csv("bare.csv", index=False)
    capsys.readouterr()
    assert run("predict", "fit/model", "bare.csv") == 0
    assert capsys.readouterr().out.startswith("price_mean,price_sd\n")


def test_fit_several_targets(folder, capsys):
    code = run(
        "fit", "table.csv", "--target", "rent", "--target", "price", "--epochs", 3, "--quiet",
        "--out", "two", "--drop", "note", "--components", 2, "--hidden", 8,
    )  # fmt: skip
    assert code == 0
    summary = json.loads((folder / "two" / "summary.json").read_text())
    assert [row["target"] for row in summary["scores"]] == ["rent", "price"] * 2
    assert summary["encoding"]["dropped"]["note"] == "left out with --drop"
    assert json.loads((folder / "two/model/config.json").read_text())["model"]["head"][
        "covariance"
    ] == "full"  # fmt: skip


@pytest.mark.nightly
def test_fit_a_family_with_weights_and_decimal_commas(folder, capsys):
    own = table().assign(w=1.0)
    own.to_csv("german.csv", sep=";", decimal=",", index=False)
    options = ["--sep", ";", "--decimal", ","]
    arguments = ["--target", "price:lognormal", "--weights", "w", "--epochs", 3, "--quiet"]
    assert run("fit", "german.csv", *arguments, *options) == 0
    assert "w: row weights" in capsys.readouterr().out
    assert run("predict", "fit", "german.csv", *options, "--quantile", 0.01, "--out", "q.csv") == 0
    assert (pd.read_csv("q.csv")["price_q0.01"] > 0).all()


def test_targets_with_a_colon_in_their_name():
    frame = pd.DataFrame(columns=["a:b", "price"])
    assert families_of(frame, ["a:b", "price:gamma"]) == {"a:b": "normal", "price": "gamma"}
    assert families_of(frame, ["a:b:gamma"]) == {"a:b": "gamma"}


def corrupt(column, value, row=4):
    frame = table()
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, ["--target", "price"], "there is no file bad.csv"),
        ("", ["--target", "price"], "bad.csv is empty"),
        ("a,b\n", ["--target", "a"], "has a header but no rows"),
        ("a,b\n1,2,3\n4\n5,6,7,8,9\n", ["--target", "a"], "cannot be read as a CSV table"),
        (table(), ["--target", "cost"], "there is no target column 'cost'; the columns are: row"),
        (table(), ["--target", "kind"], "'kind' holds text or truth values (such as"),
        (table(), ["--target", "price", "--target", "price"], "named twice"),
        (table(), ["--target", "price", "--drop", "nope"], "there is no --drop column 'nope'"),
        (table(), ["--target", "Price"], "Did you mean 'price'?"),
        (table(), ["--target", "price", "--drop", "price"], "both --target and --drop"),
        (table().assign(price=table().price + 1e8), ["--target", "price"], "subtract a constant"),
        (table()[["price"]], ["--target", "price"], "the table has nothing but targets"),
        (table(), ["--target", "price", "--min-weight", "0.5"], "min_weight must lie in"),
        (table(), ["--target", "price", "--out", "."], "was not written by jaxmdn fit"),
        (table(), ["--target", "price", "--test", "1.5"], "--test must lie between 0 and 1"),
        (table(), ["--target", "price", "--sep", ";"], "if the separator is not a comma"),
        (table(5), ["--target", "price"], "the table has 5 row(s); at least 20 are needed"),
        (table().assign(price=3.0), ["--target", "price"], "'price' is constant"),
        (table()[["row", "price"]], ["--target", "price"], "no input column is left: row: it only"),
        (corrupt("size", np.nan), ["--target", "price"], "column 'size' in data row 5"),
        (corrupt("price", np.inf), ["--target", "price"], "column 'price' in data row 5"),
        (corrupt("kind", None), ["--target", "price"], "column 'kind' in data row 5"),
        (corrupt("price", "n/k"), ["--target", "price"], "holds text or truth values"),
        (table(), ["--target", "price:lognorm"], "there is no family 'lognorm'; for example price"),
        (table(), ["--target", "price:poisson"], "counts have none; in Python"),
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
    if isinstance(content, str):
        (folder / "bad.csv").write_text(content)
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


def test_failure_while_writing_leaves_nothing(folder, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(evaluate, "save_figure", fail)
    code = run("fit", "table.csv", "--target", "price", "--epochs", 1, "--quiet")
    assert code == 2
    assert "disk full" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["table.csv"]


def test_force_replaces_only_what_fit_wrote(folder, capsys):
    options = ["--target", "price", "--epochs", 1, "--quiet"]
    assert run("fit", "table.csv", *options) == 0
    assert run("fit", "table.csv", *options) == 2
    assert "pass --force" in capsys.readouterr().err
    (folder / "fit" / "thesis.txt").write_text("years of work")
    assert run("fit", "table.csv", *options, "--force") == 2
    assert "thesis.txt" in capsys.readouterr().err
    (folder / "fit" / "thesis.txt").unlink()
    assert run("fit", "table.csv", *options, "--force") == 0
    # predict: the table itself is never overwritten; odd cells are named.
    before = (folder / "table.csv").read_text()
    assert run("predict", "fit", "table.csv", "--out", "table.csv") == 2
    assert (folder / "table.csv").read_text() == before
    assert run("predict", "fit", "table.csv", "--out", "no/where.csv") == 2
    corrupt("size", "tall").to_csv("text.csv", index=False)
    capsys.readouterr()
    assert run("predict", "fit", "text.csv") == 2
    assert "column 'size' must be numeric, but data row 5 holds 'tall'" in capsys.readouterr().err
    corrupt("price", None).assign(kind="castle").to_csv("gaps.csv", index=False)
    assert run("predict", "fit", "gaps.csv") == 0
    captured = capsys.readouterr()
    assert "'castle'" in captured.err
    assert captured.out.splitlines()[5].endswith(",")
    assert not captured.out.splitlines()[6].endswith(",")


@pytest.mark.parametrize("option", ["--epochs", "--patience", "--batch-size", "--components"])
def test_options_are_checked_before_anything_else(folder, capsys, option):
    with pytest.raises(SystemExit) as info:
        run("fit", "table.csv", "--target", "price", option, "0")
    assert info.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_large_offsets_cost_nothing(folder, capsys):
    """Time stamps and account numbers: float32 cannot hold them, the scores must not notice."""
    scores = []
    for offset in (0.0, 1.7e9):
        frame = table()
        frame["size"] += offset
        frame.to_csv("big.csv", index=False)
        out = f"out{offset:.0f}"
        code = run("fit", "big.csv", "--target", "price", "--epochs", 5, "--quiet", "--out", out)
        assert code == 0
        scores.append(json.loads((folder / out / "summary.json").read_text())["scores"][0])
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
        run("fit", "table.csv")
    assert info.value.code == 2


def test_encoding_is_one_hot(folder):
    frame = read_table("table.csv")
    encoding = detect(frame, ["price"], [], 20)
    x = encoding.inputs(frame)
    assert x.shape == (120, encoding.num_features)
    column = encoding.numeric.index("size")
    np.testing.assert_allclose(x[:, column], frame["size"], rtol=1e-6)
    assert set(x[:, -3:].sum(1)) == {1.0}
    np.testing.assert_array_equal(x[:, -2] == 1, frame["kind"] == "house")


def test_linear_gaussian_against_closed_form():
    """The baseline's density is the least-squares normal's (NumPy oracle)."""
    from scipy import stats

    import jaxmdn

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
    assert network["nll"] == pytest.approx(5.385, abs=0.01)
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
    network, linear = json.loads((tmp_path / "fit" / "summary.json").read_text())["scores"]
    assert network["nll"] < 3.3 < linear["nll"]
    assert 0.8 < network["coverage_90%"] < 1.0
