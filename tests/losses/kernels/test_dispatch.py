"""Which implementation serves which head, on how many devices."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from five import WEIGHTS, N, Y
from sweep import FUSED, PLAIN, H, close, reduced

import jaxmdn
from jaxmdn import ClassConditionalHead, NormalHead
from jaxmdn.losses.kernels import dispatch

PROGRAM = Path(__file__).parent / "blocks_on_devices.py"
PER_CLASS = ClassConditionalHead(2, NormalHead(2, 2))
LABEL = jnp.asarray([0, 1, 1, 0, 1])
OTHERS = {
    "labeled": (PER_CLASS, Y, lambda y: jaxmdn.Labeled(LABEL, y), False),
    "labeled-linear": (PER_CLASS, Y, lambda y: jaxmdn.Labeled(LABEL, y), True),
    "softmax": (jaxmdn.CategoricalHead(4), None, lambda y: LABEL[:, None], False),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_head_is_served(name):
    head, y, target, linear = OTHERS[name]
    rng = np.random.default_rng(1)
    hidden, kernel, bias = (
        jnp.asarray(rng.normal(size=shape))
        for shape in ((N, H), (H, head.num_outputs), head.num_outputs)
    )
    mask = jnp.asarray([True, True, False, True, True])
    which = (0,) if y is None else (0, 1)

    @jax.jit
    @partial(jax.value_and_grad, argnums=which)
    def fused(x, y):
        options = {"mask": mask, "weights": WEIGHTS, "implementation": FUSED, "chunk_size": 2}
        if not linear:
            return jaxmdn.nll(head, x, target(y), **options)
        options["reduction"] = "none"
        return jnp.sum(jaxmdn.linear_nll(head, x, kernel, bias, target(y), **options))

    @jax.jit
    def plain(raw, y):
        options = {"reduction": "none", "implementation": PLAIN}
        arguments = (raw, y)[: len(which)]
        value, pull = jax.vjp(
            lambda *x: jaxmdn.nll(head, x[0], target(x[-1]), **options), *arguments
        )
        return value, *pull(jnp.ones_like(value))

    raw = jnp.asarray(np.asarray(hidden) @ np.asarray(kernel) + np.asarray(bias))
    dirty = None if y is None else jnp.asarray(np.where(mask[:, None], y, np.nan))
    loss, gradients = fused(hidden if linear else raw, dirty)
    value, slope, *y_slope = map(np.asarray, plain(raw, y))
    rows = (value, slope, y_slope[0] if y_slope else np.zeros((N, 1)))
    how = "sum" if linear else "mean"
    expected = reduced(rows, np.asarray(WEIGHTS), np.asarray(mask), how, None)
    outer = expected["raw"] @ np.asarray(kernel).T if linear else expected["raw"]
    close(loss, expected["loss"], jnp.float64)
    for gradient, slope in zip(gradients, (outer, expected["y"]), strict=False):
        close(gradient, slope, jnp.float64)


def test_labels_that_carry_no_batch_are_refused(user_errors):
    target = jaxmdn.Labeled(jnp.asarray(1), Y)
    message = r"nll: every part of a structured target must carry the batch shape \[5\], got \[\]"
    with pytest.raises(ValueError, match=message):
        jaxmdn.nll(PER_CLASS, jnp.zeros((N, PER_CLASS.num_outputs)), target, implementation=FUSED)


def test_default_on_one_cpu():
    class Derived(NormalHead):
        pass

    chosen = {
        (NormalHead(8, 2), False): FUSED,
        (NormalHead(8, 2), True): FUSED,
        (NormalHead(2, 2), False): FUSED,
        (NormalHead(2, 2), True): PLAIN,  # few raw outputs: stored, and fused from there
        (NormalHead(8, 2, tied=True), False): PLAIN,
        (NormalHead(8, 2, tied=True, covariance="full"), False): FUSED,
        (Derived(8, 2), False): PLAIN,  # may compute something else
        (jaxmdn.CategoricalHead(3), False): PLAIN,
        (jaxmdn.CategoricalHead(3), True): FUSED,
    }
    for (head, linear), name in chosen.items():
        assert dispatch.choose("nll", None, head, linear=linear) == name, (head, linear)
        assert dispatch.choose("nll", PLAIN, head, linear=linear) == PLAIN
        assert dispatch.choose("nll", FUSED, head, linear=linear) == FUSED


def on_eight_devices(which):
    """In a process of its own, since the number of devices is fixed once JAX has started."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(PROGRAM.parents[3])}
    environment.pop("JAXMDN_CHECK_TYPES", None)
    command = [sys.executable, PROGRAM, which]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "agreed", done.stderr[-2000:]


@pytest.mark.version
def test_each_device_takes_its_own_rows_by_blocks():
    on_eight_devices("short")


@pytest.mark.nightly
@pytest.mark.version
def test_each_device_takes_its_own_rows_however_they_lie():
    on_eight_devices("long")


@pytest.mark.parametrize(
    "head",
    [NormalHead(2, 2, covariance="full", graph=((), ())), jaxmdn.CategoricalHead(3)],
    ids=["graph", "softmax"],
)
def test_triton_says_what_it_serves(head, user_errors):
    message = '"pallas_triton" serves NormalHead without low rank and without a graph, got'
    with pytest.raises(NotImplementedError, match=message):
        dispatch.choose("nll", "pallas_triton", head)
