"""Loops over blocks of rows: every transformation of JAX, broadcasting, sizes of blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from five import BOTH, CALLS, HEAD, RAW, N, Y, expected_gradients
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sweep import FUSED, PLAIN, close, plain_rows

import jaxmdn
from jaxmdn import NormalHead
from jaxmdn.losses.kernels import chunked


def test_raw_and_target_broadcast():
    head, rng = NormalHead(2, 3, covariance="full"), np.random.default_rng(0)
    raw, y = oracles.random_raw(rng, head, (2, 1)), oracles.random_target(rng, head, (3,))

    @jax.jit
    def loss_and_gradients(raw, y):
        return jax.value_and_grad(
            lambda raw, y: jaxmdn.nll(head, raw, y, chunk_size=4, implementation=FUSED), (0, 1)
        )(raw, y)

    loss, (raw_gradient, y_gradient) = loss_and_gradients(raw, y)
    every_raw = np.broadcast_to(raw, (2, 3, head.num_outputs)).reshape(6, -1)
    every_y = np.broadcast_to(y, (2, 3, 3)).reshape(6, 3)
    values, raw_slope, y_slope = map(np.asarray, plain_rows(head, every_raw, every_y))
    close(loss, np.mean(values), jnp.float64)
    close(raw_gradient, raw_slope.reshape(2, 3, -1).sum(1, keepdims=True) / 6, jnp.float64)
    close(y_gradient, y_slope.reshape(2, 3, 3).sum(0) / 6, jnp.float64)


def test_second_derivative_where_softplus_s_arms_meet():
    head, y = NormalHead(1, 1), jnp.asarray([[0.7], [0.3]])

    def hessian(**options):
        return jax.hessian(lambda raw: jaxmdn.nll(head, raw, y, reduction="sum", **options))

    at_zero = jnp.zeros((2, 3))
    found = hessian(implementation=FUSED, chunk_size=1)(at_zero)
    np.testing.assert_allclose(found, hessian(implementation=PLAIN)(at_zero), atol=1e-12)
    np.testing.assert_allclose(found[0, 2, 0, 2], 1.0579, atol=1e-4)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_second_derivatives_in_all_arguments_at_once(covariance):
    """Along one line through raw, y and weights: mixed second derivatives count, too."""
    head, rng = NormalHead(3, 2, covariance=covariance), np.random.default_rng(1)
    raw, y = (jnp.asarray(rng.normal(size=(7, n))) for n in (head.num_outputs, 2))
    start = (raw, y, jnp.asarray(rng.uniform(0.5, 1.5, 7)))
    direction = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in start)

    def second(implementation):
        def loss(t):
            raw, y, weights = (x + t * v for x, v in zip(start, direction, strict=True))
            options = {"weights": weights, "implementation": implementation, "chunk_size": 3}
            return jaxmdn.nll(head, raw, y, **options)

        @jax.jit
        def both(t):
            return jax.jvp(jax.grad(loss), (t,), (jnp.ones(()),))[1], jax.grad(jax.grad(loss))(t)

        return both(jnp.zeros(()))

    np.testing.assert_allclose(second(FUSED), second("xla"), rtol=1e-10)


@BOTH
def test_members_by_vmap_and_by_loop(linear):
    function, arguments = CALLS[linear]
    members = 3
    # The network's own arguments differ between members, the data are shared.
    stacked = [np.stack([x * (1 + 0.1 * i) for i in range(members)]) for x in arguments[:-2]]
    data, which = arguments[-2:], tuple(range(len(arguments) - 2))
    both = jax.value_and_grad(lambda *x: function(*x, *data), which)
    mapped = jax.jit(jax.vmap(both))(*stacked)
    single = jax.jit(both)
    loop = [single(*(x[i] for x in stacked)) for i in range(members)]
    loop = jax.tree.map(lambda *x: np.stack(x), *loop)
    jax.tree.map(partial(close, dtype=jnp.float64), mapped, loop)


@pytest.mark.nightly
@BOTH
def test_without_jit(linear):
    function, arguments = CALLS[linear]
    with jax.disable_jit():
        eager = jax.value_and_grad(function, tuple(range(len(arguments))))(*arguments)
    eager = (eager[0], list(eager[1]))
    jax.tree.map(partial(close, dtype=jnp.float64), eager, expected_gradients()[linear])


@BOTH
def test_gradient_of_each_argument_alone(linear):
    """What is asked for does not depend on what else is."""
    function, arguments = CALLS[linear]

    @jax.jit
    def gradients(*x):
        return [jax.grad(function, i)(*x) for i in range(len(x))]

    expected = expected_gradients()[linear][1]
    jax.tree.map(partial(close, dtype=jnp.float64), gradients(*arguments), expected)


@pytest.mark.version
@pytest.mark.parametrize(
    ("linear", "reduction"),
    [(False, "mean"), (False, "none"), (True, "mean")],
    ids=["nll", "nll-none", "linear_nll"],
)
def test_shard_map_over_one_device(linear, reduction):
    function, arguments = CALLS[linear]
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
    by_rows, whole = PartitionSpec("rows"), PartitionSpec()
    specs = tuple(by_rows if x.shape[0] == N else whole for x in arguments)
    which = tuple(range(len(arguments)))

    def loss(*x):
        result = function(*x, reduction=reduction)
        return jnp.sum(result) / jnp.sum(x[-1]) if reduction == "none" else result

    def local(*x):
        value, gradients = jax.value_and_grad(loss, which)(*x)
        return jax.lax.psum(value, "rows"), list(gradients)

    spread = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(whole, list(specs)))
    jax.tree.map(
        partial(close, dtype=jnp.float64),
        jax.jit(spread)(*arguments),
        expected_gradients()[linear],
    )


@pytest.mark.version
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda a: a.name)
def test_default_takes_rows_that_carry_a_mesh_of_one_device(axis_type):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(axis_type,))
    raw, y = (jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows"))) for x in (RAW, Y))
    loss, gradient = jax.jit(jax.value_and_grad(lambda raw: jaxmdn.nll(HEAD, raw, y)))(raw)
    value, slope, _ = plain_rows(HEAD, RAW, Y)
    close(loss, np.mean(value), jnp.float64)
    close(gradient, np.asarray(slope) / N, jnp.float64)


@pytest.mark.version
@BOTH
def test_one_trace_per_shape(linear, monkeypatch):
    traces, split = [], NormalHead.split

    def counting(self, raw):
        traces.append(raw.shape)
        return split(self, raw)

    monkeypatch.setattr(NormalHead, "split", counting)
    function = jaxmdn.linear_nll if linear else jaxmdn.nll
    network = CALLS[linear][1][:-2]

    def call(rows, scale):  # equal heads, other values; rows as in no other test
        x = [scale * np.asarray(x) for x in (*network, Y)]
        x = [jnp.asarray(np.tile(x, (4, 1))[:rows] if len(x) == N else x) for x in x]
        return function(NormalHead(3, 2), *x, chunk_size=32, implementation=FUSED)

    call(19, 1.0)
    first = len(traces)
    call(19, 2.0)
    assert len(traces) == first > 0
    call(18, 1.0)
    assert len(traces) == 2 * first


def test_default_blocks():
    narrow, wide = NormalHead(3, 2), NormalHead(16, 16)
    full = NormalHead(8, 2, covariance="full")
    for head, size in ((narrow, 32768), (wide, 512), (full, 8192)):
        # Few raw outputs are one block, unless they are not to be in memory all at once.
        assert chunked.choose_blocks(head, 5000, None) == (5000, 5000, FUSED)
        assert chunked.choose_blocks(head, 10**6, None) == (size, size, FUSED)
        assert chunked.choose_blocks(head, 5000, None, stored=False).gradient == size // 2
        assert chunked.choose_blocks(head, 5000, 7) == (7, 7, FUSED)
    # The value alone in one dimension is one pass over rows of any number.
    assert chunked.choose_blocks(NormalHead(5, 1), 10**6, None) == (10**6, 32768, FUSED)
    assert chunked.choose_blocks(narrow, 0, None).value == 1
