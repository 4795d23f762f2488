"""Training on several devices is training on one, but for rounding."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import on_devices
import pytest

pytestmark = [pytest.mark.usefixtures("as_users_run"), pytest.mark.version]
PROGRAM = Path(on_devices.__file__)


def run(*arguments, devices):
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{PROGRAM.parents[2]}"}
    environment.pop("JAXMDN_CHECK_TYPES", None)
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def agree(folder):
    """Both runs are those of one device; the folder is that of the run and goes on here."""
    x, y = on_devices.rows(3)
    one = [on_devices.fit(f"{folder} one", None), on_devices.stream(None)]
    found = np.load(f"{folder}.npz")
    for result, name, row in zip(one, ("fit", "stream"), found["log_prob"], strict=True):
        expected = [result.history[part][1:] for part in ("train_nll", "valid_nll", "grad_norm")]
        np.testing.assert_allclose(found[name], np.stack(expected), rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(row, result.log_prob(x, y), rtol=1e-3, atol=1e-4)
    loaded = on_devices.fit(folder, None)
    np.testing.assert_array_equal(loaded.log_prob(x, y), found["log_prob"][0])
    longer = [on_devices.fit(path, None, epochs=6) for path in (folder, f"{folder} one")]
    np.testing.assert_allclose(*(r.log_prob(x, y) for r in longer), rtol=1e-3, atol=1e-4)


@pytest.mark.nightly
def test_eight_devices_and_then_one(tmp_path):
    """And two, which load what eight have saved."""
    finish(run(tmp_path / "run", devices=8))
    shutil.copytree(tmp_path / "run", tmp_path / "two")
    finish(run(tmp_path / "two", devices=2))
    eight, two = (np.load(tmp_path / f"{name}.npz")["log_prob"][0] for name in ("run", "two"))
    np.testing.assert_array_equal(two, eight)
    agree(tmp_path / "run")


@pytest.mark.nightly
@pytest.mark.optimised
def test_two_processes_and_then_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    finish(*(run(tmp_path / "run", port, number, devices=1) for number in range(2)))
    agree(tmp_path / "run")


def test_a_mesh_of_one_device_is_one_device(user_errors):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    results = [on_devices.fit(None, mesh, epochs=2), on_devices.fit(None, None, epochs=2)]
    np.testing.assert_allclose(*(r.history["valid_nll"] for r in results), rtol=1e-5)
    assert results[0].predict(on_devices.rows(3)[0]).batch_shape == (203,)
    with pytest.raises(TypeError, match="mesh must be a mesh of devices"):
        on_devices.fit(None, 8)
