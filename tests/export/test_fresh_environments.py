"""Nightly: every head's export, and what is exported run where jaxmdn is not installed."""

import functools
import subprocess
import venv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import questions
from flax import nnx

import jaxmdn
from jaxmdn import FactorizedHead, Family, NormalHead, export, train

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("as_users_run", "user_errors")]
LEVELS = (0.05, 0.5, 0.95)
HEADS = questions.heads()


def built(head):
    """A network with parameters far from their start, rows, and targets that it may have."""
    model = jaxmdn.nn.MDN(3, head, hidden_features=(8,), embedding=None, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 3)).astype(np.float32)
    nnx.update(model, jax.tree.map(lambda leaf: leaf * 1.5 + 0.05, nnx.state(model, nnx.Param)))
    empty = {"x_standardizer": None, "history": {}, "best_epoch": 0, "report": None}
    y_map = None
    if head.real_valued:
        y_map = train.Standardizer.fit(
            rng.gamma(2.0, size=(50, head.event_dim)), closure=head.closure
        )
    result = train.FitResult(model=model, y_standardizer=y_map, **empty)
    y = jaxmdn.sample(jax.random.key(0), result.predict(x))
    return result, x, y


def answers(density, y):
    """What the density itself says, of every output that it has."""
    asked = {
        "mean": lambda: jaxmdn.mean(density),
        "std": lambda: jnp.sqrt(jaxmdn.variance(density)),
        "quantiles": lambda: jaxmdn.quantile(density, np.asarray(LEVELS, np.float32)),
        "log_prob": lambda: jaxmdn.log_prob(density, y),
        "cdf": lambda: jaxmdn.cdf(density, y),
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = np.asarray(ask())
        except questions.REFUSALS:
            continue
    return found


@pytest.mark.parametrize("name", HEADS)
def test_a_program_of_every_head_takes_any_number_of_rows(name, tmp_path):
    result, x, y = built(HEADS[name])
    if isinstance(y, tuple):
        with pytest.raises(ValueError, match="log_prob"):
            export.save(tmp_path / "out", result, outputs=("log_prob",))
        y = y.y
    wanted = answers(result.predict(x), y)
    assert "log_prob" in wanted
    outputs = ("parameters", *wanted)
    folder = export.save(tmp_path / "out", result, outputs=outputs, quantiles=LEVELS)
    program = jax.export.deserialize(bytearray((folder / "program.jax").read_bytes()))
    given = set(outputs) & {"log_prob", "cdf"}
    for rows in (7, 1):
        found = program.call(x[:rows], *([np.asarray(y[:rows], np.float32)] if given else []))
        for which, value in wanted.items():
            value = value[:, :rows] if which == "quantiles" else value[:rows]
            np.testing.assert_allclose(found[which], value, rtol=2e-4, atol=1e-5, err_msg=which)


@functools.cache
def environment(folder, *packages):
    """Python with these packages and nothing of ours; skips where none can be downloaded."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip(f"pip: {found.stderr.strip().splitlines()[-1]}")
    return python


def run(python, program, folder, x, y, tmp_path):
    names = [tmp_path / name for name in ("x.npy", "y.npy", "found.npz")]
    np.save(names[0], x)
    np.save(names[1], y)
    code = f"import sys, pathlib\nimport numpy as np\n{program}"
    code += "\nimport importlib.util\nassert not importlib.util.find_spec('jaxmdn')"
    command = [python, "-W", "error", "-c", code, folder, *names]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert done.returncode == 0, done.stderr
    with np.load(names[2]) as file:
        return dict(file)


READ = """
sys.path.insert(0, sys.argv[1])
import reader
x, y = (np.load(name) for name in sys.argv[2:4])
model = reader.load(sys.argv[1])
np.savez(sys.argv[4], mean=model.mean(x), quantiles=[model.quantile(x, p) for p in (.05, .5, .95)],
         log_prob=model.log_prob(x, y), cdf=model.cdf(x, y))
"""
RUN_ONNX = """
import onnxruntime
x, y = (np.load(name) for name in sys.argv[2:4])
session = onnxruntime.InferenceSession(pathlib.Path(sys.argv[1], "model.onnx"))
names = [output.name for output in session.get_outputs()]
np.savez(sys.argv[4], **dict(zip(names, session.run(None, {"x": x, "y": y}))))
"""
RUN_JAX = """
import jax
x, y = (np.load(name) for name in sys.argv[2:4])
data = pathlib.Path(sys.argv[1], "program.jax").read_bytes()
np.savez(sys.argv[4], **jax.export.deserialize(bytearray(data)).call(x, y))
"""


def table(counts=False):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2)).astype(np.float32)
    y = 100 + 10 * x + rng.normal(size=(80, 2))
    if counts:
        y[:, 1] = rng.poisson(np.exp(1 + 0.3 * x[:, 1]))
    return x, y.astype(np.float32)


def trained(head, y, x):
    model = jaxmdn.nn.MDN(2, head, hidden_features=(8,), rngs=nnx.Rngs(0))
    return train.fit(model, x, y, num_epochs=3, progress=False)


def assert_same(found, result, x, y):
    wanted = answers(result.predict(x), y)
    for name in found.keys() & wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert len(found.keys() & wanted) >= 2


def test_an_ensemble_where_there_is_numpy_alone(tmp_path):
    x, y = table()
    recipe = train.Recipe(folds=2, cycles=(2,), hidden_features=(8,))
    result = train.fit_ensemble(x, y[:, :1], recipe=recipe, progress=False)
    folder = export.save(tmp_path / "out", result, format="numpy")
    python = environment(tmp_path / "venv", f"numpy=={np.__version__}")
    assert_same(run(python, READ, folder, x, y[:, :1], tmp_path), result, x, y[:, :1])


def test_a_graph_where_there_is_onnxruntime_alone(tmp_path):
    x, y = table()
    result = trained(NormalHead(2, 2), y, x)
    outputs = ("mean", "std", "log_prob")
    folder = export.save(tmp_path / "out", result, outputs=outputs, format="onnx")
    python = environment(tmp_path / "venv", "onnxruntime")
    assert_same(run(python, RUN_ONNX, folder, x, y, tmp_path), result, x, y)


def test_programs_where_there_is_jax_alone(tmp_path):
    """A fitted full covariance, and counts beside real numbers."""
    python = environment(
        tmp_path / "venv", f"jax=={jax.__version__}", f"jaxlib=={jax.__version__}", "flatbuffers"
    )
    heads = {
        "full": NormalHead(2, 2, covariance="full"),
        "counts": FactorizedHead(("normal", Family("hurdle", base="poisson")), 2),
    }
    for name, head in heads.items():
        x, y = table(counts=name == "counts")
        result = trained(head, y, x)
        outputs = ("mean", "std", "quantiles", "log_prob", "cdf")
        folder = export.save(tmp_path / name, result, outputs=outputs, quantiles=LEVELS)
        assert_same(run(python, RUN_JAX, folder, x, y, tmp_path), result, x, y)
