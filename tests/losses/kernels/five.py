"""Five rows in blocks of two, a loop and a rest: one head, its layer, and what should come out."""

import functools

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sweep import FUSED, H, plain_rows, reduced

import jaxmdn
from jaxmdn import NormalHead

HEAD, N = NormalHead(3, 2), 5
RNG = np.random.default_rng(0)
RAW = np.array(oracles.random_raw(RNG, HEAD, (N,)))
RAW[0] = 0.0  # ties, and the middle of every link
RAW = jnp.asarray(RAW)
Y = oracles.random_target(RNG, HEAD, (N,))
WEIGHTS = jnp.asarray([1.0, 2.0, 0.5, 0.0, 3.0])
HIDDEN = jnp.asarray(RNG.normal(size=(N, H)))
KERNEL = jnp.asarray(RNG.normal(size=(H, HEAD.num_outputs)))
BIAS = jnp.asarray(RNG.normal(size=HEAD.num_outputs))
LAYER = (HIDDEN, KERNEL, BIAS, Y, WEIGHTS)


def from_raw(raw, y, weights, **options):
    options = {"implementation": FUSED, "chunk_size": 2} | options
    return jaxmdn.nll(HEAD, raw, y, weights=weights, **options)


def from_hidden(hidden, kernel, bias, y, weights, **options):
    options = {"implementation": FUSED, "chunk_size": 2} | options
    return jaxmdn.linear_nll(HEAD, hidden, kernel, bias, y, weights=weights, **options)


@functools.cache
def expected_gradients():
    """What the two functions above should give, by name, in NumPy; without and with a layer."""

    def reference(raw):
        rows = [np.asarray(part) for part in plain_rows(HEAD, raw, Y)]
        return reduced(rows, np.asarray(WEIGHTS), np.ones(N, bool), "mean", None)

    from_raw = reference(RAW)
    from_hidden = reference(np.asarray(HIDDEN) @ np.asarray(KERNEL) + np.asarray(BIAS))
    outer = from_hidden["raw"]
    layer = {"hidden": outer @ np.asarray(KERNEL).T, "kernel": np.asarray(HIDDEN).T @ outer}
    layer["bias"] = np.sum(outer, axis=0)
    return [
        (from_raw["loss"], [from_raw[name] for name in ("raw", "y", "weights")]),
        (from_hidden["loss"], [*layer.values(), from_hidden["y"], from_hidden["weights"]]),
    ]


BOTH = pytest.mark.parametrize("linear", [False, True], ids=["nll", "linear_nll"])
CALLS = [(from_raw, (RAW, Y, WEIGHTS)), (from_hidden, LAYER)]
