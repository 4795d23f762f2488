"""Which implementation serves which head, on how many devices."""

import os
import subprocess
import sys
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from five import WEIGHTS, N, Y
from sweep import FUSED, PLAIN, H, close, reduced

import jaxmdn
from jaxmdn import ClassConditionalHead, NormalHead
from jaxmdn.losses.kernels import dispatch

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


@pytest.mark.version
def test_several_devices():
    # Elsewhere, since the number of devices is fixed once JAX has started.
    program = """
        import jax, jax.numpy as jnp, numpy as np, jaxmdn
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from jaxmdn.losses.kernels import dispatch

        assert jax.device_count() == 2
        jax.config.update("jax_enable_x64", True)
        head, rng = jaxmdn.NormalHead(8, 2, covariance="full"), np.random.default_rng(0)
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, P("rows"))
        raw, y, hidden = (jnp.asarray(rng.normal(size=(8, n))) for n in (head.num_outputs, 2, 3))
        kernel = jnp.asarray(rng.normal(size=(3, head.num_outputs)))
        bias, chosen = jnp.zeros(head.num_outputs), []

        def choices():
            chosen.append(dispatch.choose("nll", None, head))
            chosen.append(dispatch.choose("linear_nll", None, head, linear=True))

        @jax.jit
        def losses(raw, hidden, kernel, y):
            choices()
            return [
                jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, y))(raw),
                jax.value_and_grad(
                    lambda *layer: jaxmdn.linear_nll(head, *layer, bias, y), (0, 1)
                )(hidden, kernel),
            ]

        spread = losses(*(jax.device_put(x, rows) for x in (raw, hidden)), kernel,
                        jax.device_put(y, rows))
        assert spread[0][1].sharding.is_equivalent_to(rows, 2)
        assert chosen == ["xla"] * 2, chosen

        def plain(raw, hidden, kernel, y):
            options = {"implementation": "xla"}
            return [
                jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, y, **options))(raw),
                jax.value_and_grad(
                    lambda *layer: jaxmdn.linear_nll(head, *layer, bias, y, **options), (0, 1)
                )(hidden, kernel),
            ]

        def close(a, b):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)

        expected = plain(raw, hidden, kernel, y)
        jax.tree.map(close, spread, expected)

        # The same local shapes as above would be, so that no cached trace may be taken for this.
        def local(raw, hidden, kernel, y):
            choices()
            half = losses(raw, hidden, kernel, y)
            return [(value[None], gradient) for value, gradient in half]

        by_row = [(P("rows"), P("rows")), (P("rows"), (P("rows"), P()))]
        inside = jax.jit(jax.shard_map(
            local, mesh=mesh, in_specs=(P("rows"), P("rows"), P(), P("rows")), out_specs=by_row,
        ))
        result = inside(raw, hidden, kernel, y)
        assert set(chosen[2:]) == {"xla_chunked"}, chosen
        close(np.mean(result[0][0]), expected[0][0])
        close(result[0][1] / 2, expected[0][1])  # half the rows, so twice each one's share
        close(np.mean(result[1][0]), expected[1][0])
        close(result[1][1][0] / 2, expected[1][1][0])
        close(result[1][1][1] / 2, expected[1][1][1])  # summed over the devices
        print("agreed")
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment.pop("JAXMDN_CHECK_TYPES", None)
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "agreed", done.stderr[-2000:]


@pytest.mark.parametrize(
    "head",
    [NormalHead(2, 2, covariance="full"), jaxmdn.CategoricalHead(3)],
    ids=["full", "softmax"],
)
def test_triton_says_what_it_serves(head, user_errors):
    message = '"pallas_triton" serves NormalHead with isotropic or diagonal covariance, got'
    with pytest.raises(NotImplementedError, match=message):
        dispatch.choose("nll", "pallas_triton", head)
