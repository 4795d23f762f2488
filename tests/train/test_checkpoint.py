"""Saving and loading: exact, complete, free of pickles."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmdn
from jaxmdn import train
from jaxmdn.train import checkpoint

pytestmark = [pytest.mark.usefixtures("as_users_run"), pytest.mark.version]


@pytest.fixture(scope="module")
def fitted():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 3)).astype(np.float32)
        y = (10.0 * x[:, :2] + rng.normal(size=(60, 2)) + 100.0).astype(np.float32)
        head = jaxmdn.NormalHead(
            2, 2, covariance="full", scale_link=jaxmdn.heads.links.DampedExp(0.01), min_weight=0.01
        )
        model = jaxmdn.nn.MDN(3, head, hidden_features=(8,), dropout=0.1, rngs=nnx.Rngs(0))
        return train.fit(model, x, y, num_epochs=2, progress=False), x, y


def test_round_trip_is_exact(fitted, tmp_path):
    result, x, y = fitted
    folder = checkpoint.save(tmp_path / "deep" / "model", result, notes={"who": ["me", 1]})
    loaded = checkpoint.load(folder)
    assert np.array_equal(loaded.log_prob(x, y), result.log_prob(x, y))
    assert loaded.model.head == result.model.head
    assert loaded.best_epoch == result.best_epoch
    for name, values in result.history.items():
        np.testing.assert_array_equal(loaded.history[name], values)
    assert checkpoint.load_notes(folder) == {"who": ["me", 1]}


ELSEWHERE = """
import pickle, sys
import jax, numpy as np
jax.config.update("jax_enable_x64", sys.argv[2] == "True")
result, x, y, expected = pickle.load(open(sys.argv[1], "rb"))
np.testing.assert_allclose(result.log_prob(x, y), expected, rtol=1e-5)
"""


@pytest.mark.parametrize("x64", [False, True])
def test_a_pickle_is_read_by_another_process(fitted, tmp_path, x64):
    result, x, y = fitted
    path = tmp_path / "result.pkl"
    path.write_bytes(pickle.dumps((result, x, y, np.asarray(result.log_prob(x, y)))))
    environment = {k: v for k, v in os.environ.items() if k != "JAXMDN_CHECK_TYPES"}
    command = [sys.executable, "-W", "error", "-c", ELSEWHERE, str(path), str(x64)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_copies_predict_the_same(fitted):
    result, x, y = fitted
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        assert np.array_equal(other.log_prob(x, y), result.log_prob(x, y))
        assert repr(other) == repr(result)


def test_no_pickles_and_valid_json(fitted, tmp_path):
    folder = checkpoint.save(tmp_path / "model", fitted[0])
    json.loads((folder / "config.json").read_text(), parse_constant=pytest.fail)
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if "pickle" in name or name.endswith(".pkl")]
    for path in folder.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith(b"\x80\x04"), f"{path} is a pickle"


def test_existing_folder_is_kept_unless_told(fitted, tmp_path):
    result, *_ = fitted
    folder = checkpoint.save(tmp_path / "model", result, notes={"version": 1})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        checkpoint.save(folder, result, notes={"version": 2})
    assert checkpoint.load_notes(folder) == {"version": 1}
    checkpoint.save(folder, result, notes={"version": 2}, overwrite=True)
    assert checkpoint.load_notes(folder) == {"version": 2}


def test_overwrite_never_replaces_anything_else(fitted, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no saved network"):
        checkpoint.save(precious, fitted[0], overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_failed_save_leaves_nothing(fitted, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "model", fitted[0], notes={"bad": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_custom_trunk_needs_the_model(tmp_path):
    x = jnp.ones((30, 2)) * jnp.arange(30.0)[:, None]
    y = x[:, :1] + 1.0

    def build(seed):
        rngs = nnx.Rngs(seed)
        trunk = nnx.Sequential(nnx.Linear(2, 4, rngs=rngs), nnx.tanh)
        return jaxmdn.nn.MDN.from_trunk(trunk, 4, jaxmdn.NormalHead(2, 1), rngs=rngs)

    result = train.fit(build(0), x, y, num_epochs=1, progress=False)
    folder = checkpoint.save(tmp_path / "model", result)
    with pytest.raises(ValueError, match="pass a freshly built one"):
        checkpoint.load(folder)
    loaded = checkpoint.load(folder, model=build(1))
    assert np.array_equal(loaded.log_prob(x, y), result.log_prob(x, y))
    wrong = jaxmdn.nn.MDN(2, jaxmdn.NormalHead(2, 1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="build it with the same arguments"):
        checkpoint.load(folder, model=wrong)


def test_not_a_checkpoint(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        checkpoint.load(tmp_path)
    folder = checkpoint.save(tmp_path / "model", fitted[0])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["network", "ensemble"])
def test_folders_of_format_1_keep_loading(name):
    """Written by the commit before format 2, with log-densities that it computed."""
    folder = Path(__file__).parent / "format_1" / name
    loaded, notes = checkpoint.load(folder), checkpoint.load_notes(folder)
    x, y = (np.asarray(notes[part], np.float32)[:, None] for part in ("x", "y"))
    np.testing.assert_allclose(loaded.log_prob(x, y), notes["log_prob"], rtol=1e-5, atol=1e-5)
