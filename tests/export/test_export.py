"""Exported files against the densities that they were made of."""

import concurrent.futures
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import httpx
import jax
import jax.numpy as jnp
import joblib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import safetensors.numpy
from flax import nnx
from scipy import special, stats

import jaxmdn
from jaxmdn import FactorizedHead, Family, NormalHead, export, train
from jaxmdn.inference.widening import has_scales
from jaxmdn.train.linear import fit_linear

pytestmark = pytest.mark.usefixtures("as_users_run")
RECIPE = train.Recipe(folds=2, cycles=(2,), hidden_features=(8,))
LEVELS = (0.05, 0.5, 0.95)


def table(outputs, whole=()):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32) + 5
    y = 100 + 10 * np.resize(x.T, (outputs, 60)).T + rng.normal(size=(60, outputs))
    y[:, whole] = rng.integers(0, 9, (60, len(whole)))
    return x, y.astype(np.float32)


def built(head, **options):
    """A network with parameters far from their start, and standardisers: nothing is trained."""
    support = head.density_shape.support
    x, y = table(head.event_dim, [d for d, own in enumerate(support) if own.discrete])
    arguments = {"hidden_features": (8, 6), **options}
    model = nnx.eval_shape(lambda: jaxmdn.nn.MDN(3, head, rngs=nnx.Rngs(0), **arguments))
    rng = np.random.default_rng(1)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape).astype(leaf.dtype)),
        nnx.state(model),
    )
    nnx.update(model, state)
    y_map = train.Standardizer.fit(y, closure=head.closure)
    x_map = train.Standardizer.fit(x)
    temperature = 1.3 if has_scales(head.density_shape) else 1.0
    empty = {"history": {}, "best_epoch": 0, "report": None, "temperature": temperature}
    result = train.FitResult(model=model, x_standardizer=x_map, y_standardizer=y_map, **empty)
    return result, x, y


@pytest.fixture(scope="module")
def ensemble():
    """Of a table with gaps and categories, asked about a category that it never met, too."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        x, y = table(1)
        frame = pd.DataFrame(x[:, :2], columns=["a", "b"])
        frame["kind"] = np.array(["u", "v", None, "w"], object)[np.arange(60) % 4]
        frame.loc[::11, "a"] = np.nan
        result = train.fit_ensemble(frame, y, recipe=RECIPE, progress=False)
        frame.loc[5, "kind"] = "x"
        return result, frame, y


def pooled(head):
    """Two kinds of two networks each, with a temperature, and a linear model where one can be."""
    result, x, y = built(head)
    networks = jax.tree.map(
        lambda leaf: leaf * jnp.linspace(0.5, 1.5, 4).reshape(2, 2, *(1,) * leaf.ndim),
        nnx.state(result.model),
    )
    linear = None
    if has_scales(head.density_shape):
        standardized = result.x_standardizer(x), result.y_standardizer(y)
        linear = fit_linear(*standardized, np.ones(len(x)))
    count = 2 if linear is None else 3
    temperature = jaxmdn.calibration.Temperature(
        scale=jnp.array([1.2, 0.8, 0.9])[:count],
        noise=jnp.array([0.05] * head.event_dim),
        weights=jnp.array([0.3, 0.5, 0.2])[:count],
        outliers=jnp.array(0.02),
        loc=jnp.array([0.1] * head.event_dim),
        spread=jnp.array([1.5] * head.event_dim),
    )
    ensemble = train.EnsembleResult(
        graphdef=nnx.graphdef(result.model),
        networks=networks,
        linear=linear,
        folds=np.arange(60) % 2,
        temperature=temperature,
        narrowing=1.0,
        floor=jnp.array([0.06] * head.event_dim),
        columns=train.Columns.fit(x),
        x_standardizer=result.x_standardizer,
        y_standardizer=result.y_standardizer,
        out_of_fold=None,
        history={},
    )
    return ensemble, x, y


@jax.jit
def answers(density, y):
    """In one program: compilations are dear."""
    components = density.components
    return {
        "mean": jaxmdn.mean(density),
        "std": jnp.sqrt(jaxmdn.variance(density)),
        "quantiles": jaxmdn.quantile(density, np.asarray(LEVELS, np.float32)),
        "log_prob": jaxmdn.log_prob(density, y),
        "cdf": jaxmdn.cdf(density, y),
        "weights": density.weights(),
        "components.loc": getattr(components, "loc", jnp.zeros(1)),
    }


def expected(result, x, y):
    return jax.device_get(answers(result.predict(x), jnp.asarray(y)))


def assert_close(found, wanted, tolerance):
    scale = np.abs(wanted[np.isfinite(wanted)]).max()
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * scale)


def load(path):
    with np.load(path) as file:
        return dict(file)


RUN = """
import json, pathlib, sys
import jax, numpy as np
x, y = (np.load(name) for name in sys.argv[2:4])
data = pathlib.Path(sys.argv[1], "program.jax").read_bytes()
program = jax.export.deserialize(bytearray(data))
for rows in (1, 7, len(x)):
    found = program.call(x[:rows], y[:rows])
assert not {"jaxmdn", "flax"} & set(sys.modules)
np.savez(sys.argv[4], **found)
"""


def test_jax_program_of_an_ensemble_runs_without_jaxmdn(ensemble, tmp_path, user_errors):
    result, frame, y = ensemble
    x = result.columns.codes(frame).astype(np.float32)
    folder = export.save(
        tmp_path / "out", result, outputs=export.OUTPUTS, quantiles=LEVELS, format="jax"
    )
    names = [tmp_path / name for name in ("x.npy", "y.npy", "found.npz")]
    np.save(names[0], x)
    np.save(names[1], y)
    command = [sys.executable, "-c", RUN, str(folder), *map(str, names)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found, wanted = load(names[2]), expected(result, frame, y)
    for name in ("mean", "std", "quantiles", "log_prob", "cdf", "weights"):
        assert_close(found[name], wanted[name], 1e-5)
    described = json.loads((folder / "description.json").read_text())
    assert described["inputs"] == {"x": ["float32", "rows", "3"], "y": ["float32", "rows", "1"]}
    assert described["outputs"]["quantiles"] == ["float32", "3", "rows", "1"]
    assert described["columns"]["categories"][2] == ["u", "v", "w"]


def test_ensembles_travel_with_their_categories(ensemble, tmp_path):
    result, frame, y = ensemble
    joblib.dump(result, tmp_path / "ensemble.joblib")
    other = joblib.load(tmp_path / "ensemble.joblib")
    assert other.columns.to_config() == result.columns.to_config()
    np.testing.assert_array_equal(other.log_prob(frame, y), result.log_prob(frame, y))


@pytest.mark.parametrize("format", export.FORMATS)
def test_a_single_network_with_its_columns(format, tmp_path, user_errors):
    """A gap, and a category that was never met: the table goes in as before the preparation."""
    x, _ = table(1)
    frame = pd.DataFrame({"a": x[:, 0], "kind": np.array(["u", None], object)[np.arange(60) % 2]})
    frame.loc[::5, "a"] = np.nan
    columns = train.Columns.fit(frame.assign(kind="u"))
    result, *_ = built(NormalHead(2))
    frame.loc[0, "kind"] = "w"
    folder = export.save(
        tmp_path / "out", result, outputs=("mean",), columns=columns, format=format
    )
    wanted = np.asarray(jaxmdn.mean(result.predict(columns(frame))))
    codes = columns.codes(frame).astype(np.float32)
    if format == "numpy":
        model = export.archive.reader.load(folder)
        assert_close(model.mean({name: list(frame[name]) for name in frame}), wanted, 1e-5)
        assert_close(model.mean(frame.to_numpy()), wanted, 1e-5)
    elif format == "onnx":
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        assert_close(session.run(None, {"x": codes})[0], wanted, 1e-5)
    else:
        program = jax.export.deserialize(bytearray((folder / "program.jax").read_bytes()))
        assert_close(np.asarray(program.call(codes)["mean"]), wanted, 1e-5)
    if format == "numpy":
        with pytest.raises(ValueError, match="columns makes 2 numbers of a row, the network takes"):
            export.save(tmp_path / "no", result, columns=train.Columns.fit(x[:, :2]))


READ = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, reader
x, y = (np.load(name, allow_pickle=True) for name in sys.argv[2:4])
model = reader.load(sys.argv[1])
quantiles = [model.quantile(x, p) for p in (0.05, 0.5, 0.95)]
assert not {"jax", "jaxmdn", "scipy", "flax"} & set(sys.modules)
np.savez(sys.argv[4], mean=model.mean(x), std=np.sqrt(model.variance(x)), quantiles=quantiles,
         log_prob=model.log_prob(x, y), cdf=model.cdf(x, y), weights=model.mixture(x)["weights"])
"""

CASES = {
    "diagonal": (NormalHead(3, 2, min_weight=0.01), {}),
    "isotropic, tied": (
        NormalHead(2, 2, covariance="isotropic", tied=True, scale_link="damped_exp"),
        {"embedding": None, "activation": "gelu"},
    ),
    "families": (
        FactorizedHead(("student_t", "laplace"), 2, min_scale=2.5, units=(0.5, 8.0)),
        {"activation": "selu"},
    ),
    "fixed df": (
        FactorizedHead(
            (Family("student_t", df=3.5), "logistic"),
            2,
            scale_link=jaxmdn.heads.links.Softplus(floor=0.1, knee=50.0),
        ),
        {"activation": "softplus", "hidden_features": ()},
    ),
    "full, a graph": (NormalHead(3, 3, covariance="full", graph=((), (0,), (1,))), {}),
    "full, tied": (NormalHead(3, 2, covariance="full", tied=True), {}),
    "low rank": (NormalHead(2, 3, covariance="low_rank", rank=2), {}),
    "counts": (
        FactorizedHead(
            (
                "poisson",
                Family("negative_binomial", concentration=0.7),
                Family("zero_inflated", base="negative_binomial"),
                "normal",
            ),
            3,
        ),
        {},
    ),
}


DEAR = ("counts", "full, tied", "pooled counts", "pooled, full")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.nightly if name in DEAR else ())
        for name in (*CASES, "ensemble", "pooled, full", "pooled counts")
    ],
)
def test_archive_is_read_with_numpy_alone(name, ensemble, tmp_path):
    if name.startswith("pooled"):
        counts = FactorizedHead(("poisson", "negative_binomial"), 2)
        result, x, y = pooled(NormalHead(2, 2, covariance="full") if "full" in name else counts)
    else:
        result, x, y = ensemble if name == "ensemble" else built(CASES[name][0], **CASES[name][1])
    folder = export.save(tmp_path / "out", result, format="numpy")
    names = [tmp_path / part for part in ("x.npy", "y.npy", "found.npz")]
    np.save(names[0], x)
    np.save(names[1], y)
    command = [sys.executable, "-W", "error", "-c", READ, str(folder), *map(str, names)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found, wanted = load(names[2]), expected(result, x, y)
    for part in ("mean", "std", "quantiles", "log_prob", "cdf", "weights"):
        assert_close(found[part], wanted[part], 2e-5)


@pytest.mark.parametrize("rate", [0.01, 3.0, 400.0])
@pytest.mark.parametrize("r", [0.05, 4.0, 1e4, np.inf])
def test_counts_of_the_reader_against_scipy(rate, r):
    reader = export.archive.reader
    peer = stats.poisson(rate) if np.isinf(r) else stats.nbinom(r, r / (r + rate))
    k = np.unique(np.append([-1.0, 0.0, 0.5], peer.ppf(np.linspace(0, 1 - 1e-9, 30)[1:])))
    own = {"rate": np.full(k.shape, rate), "concentration": np.full(k.shape, r)}
    for z in (0.0, 0.3):
        own["logit"] = np.full(k.shape, special.logit(z))
        with np.errstate(divide="ignore"):
            log_mass = np.log(z * (k == 0) + (1 - z) * peer.pmf(k))
        found = reader.log_density("zero_inflated", k, own)
        np.testing.assert_allclose(found, log_mass, rtol=1e-8, atol=1e-9)
        cdf = np.where(k < 0, 0, z + (1 - z) * peer.cdf(k))
        np.testing.assert_allclose(reader.distribution("zero_inflated", k, own), cdf, rtol=1e-9)


def test_archived_parameters_are_the_networks_bit_for_bit(tmp_path):
    result, *_ = built(CASES["diagonal"][0])
    folder = export.save(tmp_path / "out", result, format="numpy")
    arrays = safetensors.numpy.load_file(folder / "arrays.safetensors")
    kernel = result.model.trunk.layers[0].kernel[...]
    assert np.array_equal(arrays["trunk.layers.0.kernel"], kernel)
    assert sum(array.size for array in arrays.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(result.model))
    )


def test_a_head_that_the_reader_does_not_know_has_raw_outputs(tmp_path):
    result, x, _ = built(FactorizedHead(("gamma", "poisson"), 2))
    folder = export.save(tmp_path / "out", result, format="numpy")
    model = export.archive.reader.load(folder)
    raw = result.model.raw(result.x_standardizer(x))
    assert_close(model.raw(x), np.asarray(raw), 1e-5)
    with pytest.raises(ValueError, match="does not know the head; raw"):
        model.mean(x)


@pytest.mark.parametrize("name", ["diagonal", "isotropic, tied"])
def test_onnx_runtime_computes_the_same(name, tmp_path):
    result, x, y = built(CASES[name][0], **CASES[name][1])
    outputs = ("parameters", "mean", "std", "log_prob")
    folder = export.save(tmp_path / "out", result, outputs=outputs, format="onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    wanted = expected(result, x, y)
    for rows in (1, 60):
        values = session.run(None, {"x": x[:rows], "y": y[:rows]})
        found = dict(zip(names, values, strict=True))
        for own in ("weights", "mean", "std", "log_prob"):
            assert_close(found[own], wanted[own][:rows], 1e-5)
        assert_close(found["loc"], wanted["components.loc"][:rows], 1e-5)


@pytest.mark.parametrize("activation", jaxmdn.nn.ACTIVATIONS)
def test_every_activation_of_both_formats(activation, tmp_path):
    result, x, _ = built(NormalHead(1), activation=activation, embedding=None)
    wanted = np.asarray(jaxmdn.mean(result.predict(x)))
    assert_close(
        export.archive.reader.load(export.save(tmp_path / "a", result, format="numpy")).mean(x),
        wanted,
        1e-5,
    )
    folder = export.save(tmp_path / "b", result, outputs=("mean",), format="onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert_close(session.run(None, {"x": x})[0], wanted, 1e-5)


def test_folders_are_kept_and_replaced(tmp_path):
    result, *_ = built(NormalHead(1))
    folder = export.save(tmp_path / "out", result, format="numpy")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export.save(folder, result, format="numpy")
    export.save(folder, result, outputs=("mean",), format="onnx", overwrite=True)
    assert not (folder / "reader.py").exists()
    pathlib.Path(tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="it is no export"):
        export.save(tmp_path / "mine", result, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pmml"}, "format must be one of"),
        ({"outputs": ("mode",)}, "outputs must be one of"),
        ({"quantiles": (0.0, 0.5)}, r"levels in \(0, 1\)"),
        ({"format": "onnx", "outputs": ("quantiles",)}, "has the outputs"),
    ],
)
def test_errors(options, message, tmp_path, user_errors):
    result, *_ = built(NormalHead(1))
    with pytest.raises(ValueError, match=message):
        export.save(tmp_path / "out", result, **options)
    assert not list(tmp_path.iterdir())


def test_what_a_format_cannot_hold_is_said(ensemble, tmp_path):
    with pytest.raises(ValueError, match="format 'onnx' holds a single network"):
        export.save(tmp_path / "out", ensemble[0], outputs=("mean",), format="onnx")
    own, *_ = built(NormalHead(1), activation=lambda x: x)
    with pytest.raises(ValueError, match="use format='jax' for other trunks"):
        export.save(tmp_path / "out", own, format="numpy")


@pytest.fixture
def server(tmp_path, user_errors):
    """``docs/serve.py`` as it is started, behind a port."""
    result, x, _ = built(NormalHead(2, 2))
    columns = train.Columns(  # [a, kind] -> a, whether it is missing, whether the kind is u
        names=("a", "kind"), medians=(5.0, np.nan), gaps=(True, False), categories=((), ("u",))
    )
    codes = np.stack([x[:, 0], np.arange(60) % 3 - 1.0], axis=1).astype(np.float32)
    codes[::7, 0] = np.nan
    options = {"outputs": ("parameters", "mean", "quantiles"), "quantiles": LEVELS}
    folder = export.save(tmp_path / "out", result, columns=columns, **options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "EXPORTED": str(folder)}
    docs = pathlib.Path(__file__).parents[2] / "docs"
    command = [sys.executable, "-m", "uvicorn", "serve:app", "--app-dir", str(docs)]
    command += ["--port", port, "--log-level", "warning"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(300):
                try:
                    client.get("/")
                    break
                except httpx.TransportError:
                    assert process.poll() is None, process.stderr.read()
                    time.sleep(0.1)
            yield client, result, columns.spread(codes), codes
        process.terminate()


def test_served_over_http(server):
    client, result, x, codes = server
    wanted = expected(result, x, np.zeros((60, 2), np.float32))
    table = [[None if np.isnan(value) else float(value) for value in row] for row in codes]

    def ask(rows):
        return client.post("/predict", json={"rows": rows})

    found = ask(table).json()
    assert_close(np.array(found["mean"]), wanted["mean"], 1e-5)
    assert_close(np.array(found["weights"]), wanted["weights"], 1e-5)
    assert_close(np.moveaxis(found["quantiles"], 1, 0), wanted["quantiles"], 1e-5)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers_ = list(pool.map(lambda i: ask(table[i % 60 : i % 60 + 1]), range(100)))
    for i, answer in enumerate(answers_):
        assert answer.status_code == 200
        assert_close(np.array(answer.json()["mean"][0]), wanted["mean"][i % 60], 1e-5)
    for rows in ([[1.0]], [], [["a", 1.0]], [[1.0, 1e39]], [[0.0] * 2] * 8193):
        assert ask(rows).status_code == 422
    assert "row 1 has 3 numbers" in ask([[1.0, 2.0], [1.0, 2.0, 3.0]]).text
    text = '{"rows": [[Infinity, 1.0]]}'
    answer = client.post("/predict", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "row 0 holds a number that is not finite, or none" in answer.text
    assert len(ask([[0.0] * 2] * 8192).json()["mean"]) == 8192
