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
from jax.sharding import PartitionSpec

from jaxmdn.train.spread import Layout

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
    """All runs are those of one device, and their folders, of whole and of cut parameters, go on.

    ``fit``, ``fit_stream`` and ``fit`` with parameters spread by a rule, in this order.
    """
    x, y = on_devices.rows(3)
    one = [on_devices.fit(f"{folder} one", None), on_devices.stream(None)]
    found = np.load(f"{folder}.npz")
    for i, result in enumerate([*one, one[0]]):
        expected = [result.history[part][1:] for part in ("train_nll", "valid_nll", "grad_norm")]
        np.testing.assert_allclose(found[f"history {i}"], np.stack(expected), rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(
            found["log_prob"][i], result.log_prob(x, y), rtol=1e-3, atol=1e-4
        )
    # Cut matrices are multiplied in two parts, whose sum is rounded once more.
    for path, i, rtol in ((folder, 0, 0.0), (f"{folder} halves", 2, 1e-6)):
        loaded = on_devices.fit(path, None).log_prob(x, y)
        np.testing.assert_allclose(loaded, found["log_prob"][i], rtol=rtol)
        longer = [on_devices.fit(each, None, epochs=6) for each in (path, f"{folder} one")]
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
    results = [on_devices.fit(None, own, epochs=2) for own in (mesh, None)]
    with jax.set_mesh(mesh), Layout.create("fit", mesh, None).set():  # eight of them fit there
        assert jax.sharding.get_abstract_mesh().axis_types == (jax.sharding.AxisType.Auto,)
    np.testing.assert_allclose(*(r.history["valid_nll"] for r in results), rtol=1e-5)
    assert results[0].predict(on_devices.rows(3)[0]).batch_shape == (203,)
    for given, options, message in (
        (8, {}, "mesh must be a mesh of devices"),
        (mesh, {"sharding": "data"}, "sharding must be a function"),
        (None, {"sharding": on_devices.halves}, "pass both"),
        (mesh, {"sharding": lambda leaf: PartitionSpec("model")}, r"fit: sharding .* \('data',\)"),
        (mesh, {"sharding": lambda leaf: "data"}, "fit: sharding must return .* got data; "),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            on_devices.fit(None, given, **options)
