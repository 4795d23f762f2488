"""Training on eight devices, or in two processes; a program of its own.

``python on_devices.py FOLDER``: as many virtual devices as there are. ``python on_devices.py FOLDER
PORT I``: process I of two, with a device each. A checkpoint is left in FOLDER, the history in
FOLDER.npz.
"""

import contextlib
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxmdn
from jaxmdn import train
from jaxmdn.train import checkpoint

EPOCHS = 4


def rows(seed, count=203):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2)).astype(np.float32)
    return x, (3 * x[:, :1] + rng.normal(size=(count, 1))).astype(np.float32)


def model(head=None):
    head = jaxmdn.NormalHead(2, 1) if head is None else head
    return jaxmdn.nn.MDN(2, head, hidden_features=(16,), rngs=nnx.Rngs(0))


def fit(folder, mesh, epochs=EPOCHS, **options):
    """203 rows, of which the last batch has few; the number of devices divides no batch."""
    x, y = rows(0)
    weights = np.random.default_rng(1).uniform(size=203).astype(np.float32)
    options = {
        "validation": rows(2, 50), "num_epochs": epochs, "batch_size": 30, "patience": None,
        "checkpoint": folder, "save_every": 1, "resume": True, "progress": False, **options,
    }  # fmt: skip
    return train.fit(model(), x, y, weights=weights, mesh=mesh, **options)


def stream(mesh, **options):
    cuts = [rows(seed, 30) for seed in range(5)] + [rows(9, 11)]
    options |= {"validation": rows(2, 50), "mesh": mesh, "progress": False}
    return train.fit_stream(model(), cuts, steps=12, every=6, **options)


def halves(array):
    """A rule: matrices, and what is as large, are cut in two where that is possible."""
    even = array.ndim == 2 and array.shape[0] % 2 == 0
    return PartitionSpec("data" if even else None)


def check_halves(result):
    """The network's parameters lie as the rule says."""
    for leaf in jax.tree.leaves(nnx.state(result.model, nnx.Param)):
        expected = NamedSharding(leaf.sharding.mesh, halves(leaf))
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (leaf.shape, leaf.sharding)


def check_processes(folder, mesh, number, result):
    """Of two processes: they start, stop and save together; what is for one alone is refused."""
    x, y = rows(3)
    with pytest.raises(ValueError, match=r"fit_ensemble: mesh must .* got 1 of others"):
        train.fit_ensemble(x, y, mesh=mesh, progress=False)
    with pytest.raises(ValueError, match="fit: checkpoint= is for a mesh of the devices of all"):
        fit(f"{folder} none", None)
    time.sleep(2 * number)  # the first has looked, and does not write yet

    def stop(epoch, record):
        return "stop" if number and epoch == 2 else None

    stopped = fit(f"{folder} new", mesh, resume=False, callbacks=stop)
    assert len(stopped.history["seconds"]) == 3
    model = checkpoint.save(f"{folder} model", result)
    multihost_utils.sync_global_devices("saved")
    loaded = np.asarray(checkpoint.load(model).log_prob(x, y))
    np.testing.assert_allclose(loaded, np.asarray(result.log_prob(x, y)), rtol=1e-6)
    multihost_utils.sync_global_devices("loaded")


def main(folder, port=None, number=0):
    if port is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))
    kind = AxisType.Explicit if port is None else AxisType.Auto
    shape = (2, jax.device_count() // 2)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh) if port is None else contextlib.nullcontext():
        results = [fit(folder, mesh), stream(mesh), fit(f"{folder} halves", mesh, sharding=halves)]
    check_halves(results[2])
    x, y = rows(3)
    if port is not None:
        check_processes(folder, mesh, int(number), results[2])
    log_prob = [np.asarray(result.log_prob(x, y)) for result in results]  # all processes together
    if not int(number):
        names = ("train_nll", "valid_nll", "grad_norm")
        history = {
            f"history {i}": np.stack([result.history[name][1:] for name in names])
            for i, result in enumerate(results)
        }
        np.savez(f"{folder}.npz", log_prob=np.stack(log_prob), **history)


if __name__ == "__main__":
    main(*sys.argv[1:])
