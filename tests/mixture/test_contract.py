"""The contract of every family and head: values, moments, gradients, shapes, dtypes, traces.

The families are listed in ``head_cases``; the edges and the samples have files of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from head_cases import (
    CONTINUOUS,
    DISCRETE,
    ROWS,
    D,
    K,
    answers,
    every_case,
    every_density,
    every_discrete,
    every_untied_case,
    every_untied_density,
    log_prob_and_gradients,
    numpy_rows,
)

import jaxmdn

# ------------------------------------------------------------------------------------- values


@pytest.mark.version
@every_case
def test_log_prob_is_the_oracles_for_random_shapes(case):
    rng = case.rng()
    K, D = rng.integers(1, 6), rng.integers(1, 5)
    head = case.make(int(K), int(D))
    # Leading axes broadcast: [2, 1] against [3].
    raw, y = (oracles.random_raw(rng, head, (2, 1)), oracles.random_target(rng, head, (3,)))
    value = jaxmdn.log_prob(head(raw), y)
    assert value.shape == (2, 3)
    assert value.dtype == jnp.float64
    expected = case.oracle(head, np.broadcast_to(raw, (2, 3, head.num_outputs))).log_prob(
        np.broadcast_to(y, (2, *y.shape))
    )
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_log_prob_of_parameters_that_no_head_built(covariance, tied):
    rng = np.random.default_rng([tied, oracles.COVARIANCES.index(covariance)])
    K, D = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    mixture = oracles.random_mixture(rng, covariance, K, D, (2, 3), tied=tied)
    y = jnp.asarray(rng.normal(size=(4, 1, 3, D)))
    value = jaxmdn.log_prob(mixture, y)
    assert value.shape == (4, *np.broadcast_shapes(mixture.batch_shape, (1, 3)))
    expected = oracles.of_mixture(mixture).log_prob(y)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.optimised
@every_case
def test_log_prob_in_float32(case):
    head, raw, y = numpy_rows(case, np.float32)
    value, _ = log_prob_and_gradients(head, raw, y)
    assert value.dtype == jnp.float32
    # Numbers of O(10) go through some tens of roundings of 6e-8 each.
    np.testing.assert_allclose(value, case.oracle(head, raw).log_prob(y), rtol=1e-5, atol=1e-5)


@every_untied_density
def test_log_prob_of_bfloat16_parameters(case):
    head, raw, y = numpy_rows(case, jnp.bfloat16)
    mixture = head(raw)
    value = jaxmdn.log_prob(mixture, y)
    assert value.dtype == jnp.float32
    # The parameters are rounded once, by the head; from there on all arithmetic is float32.
    expected = oracles.of_mixture(mixture).log_prob(y.astype(np.float64))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@every_untied_density
@pytest.mark.parametrize("dim", [1, 2])
def test_density_integrates_to_one(case, dim):
    # The trapezoid rule converges faster than any power of the step on a smooth peak: with scales
    # between 0.4 and 2, neither the step of 0.15 nor the tails beyond 16 cost 1e-12.
    head = case.make(2, dim)
    raw = 0.3 * oracles.random_raw(case.rng(), head, ())
    axis = np.arange(-16, 16, 0.15)
    grid = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1)
    density = np.exp(jaxmdn.log_prob(head(raw), jnp.asarray(grid)))
    assert np.sum(density) * 0.15**dim == pytest.approx(1.0, abs=1e-9)


@every_discrete
def test_probabilities_add_to_one(case):
    head, raw, _ = numpy_rows(case)
    labels = np.arange(head.num_classes)[:, None, None]  # [C, 1, 1]
    total = np.sum(np.exp(jaxmdn.log_prob(head(raw), labels)), axis=0)
    np.testing.assert_allclose(total, np.ones(ROWS), rtol=1e-12)


@pytest.mark.version
@every_density
def test_moments_and_cdf_are_the_oracles(case):
    head, raw, y = numpy_rows(case)
    found, dense = answers(head(raw), y), case.oracle(head, raw)
    covariance = dense.covariance()
    variance = np.diagonal(covariance, axis1=-2, axis2=-1)
    np.testing.assert_allclose(found["mean"], dense.mean(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found["variance"], variance, rtol=1e-10)
    np.testing.assert_allclose(found["covariance"], covariance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["cdf"], dense.cdf(y), rtol=1e-9)


# ---------------------------------------------------------------------------------- gradients


@pytest.mark.version
@every_untied_case
def test_derivatives_of_both_orders_and_modes(case):
    # One compilation holds what check_grads would compile one by one, and the reference is the
    # 80-digit derivative along the direction instead of a float64 difference of the same code.
    rng = case.rng()
    head, raw, y = numpy_rows(case)
    split = head.num_outputs
    point = np.concatenate([raw[0], y[0]]) if head.real_valued else raw[0]
    direction = jnp.asarray(rng.normal(size=point.shape))

    def value(point):
        target = point[split:] if head.real_valued else jnp.asarray(y[0])
        return jaxmdn.nll(head, point[:split], target)

    def forward(function):
        return lambda x: jax.jvp(function, (x,), (direction,))[1]

    def reverse(function):
        return lambda x: jnp.vdot(jax.grad(function)(x), direction)

    @jax.jit
    def derivatives(point):
        first = [mode(value)(point) for mode in (forward, reverse)]
        return first, [mode(reverse(value))(point) for mode in (forward, reverse)]

    first, second = derivatives(point)
    slope, curvature = oracles.exact_derivatives(head, point, direction, y[0])
    np.testing.assert_allclose(first, [-slope] * 2, rtol=1e-10)
    np.testing.assert_allclose(second, [-curvature] * 2, rtol=1e-9)


@pytest.mark.optimised
@every_case
def test_float32_gradients_are_the_float64_ones(case):
    head, raw, y = numpy_rows(case, np.float32)
    narrow = log_prob_and_gradients(head, raw, y)
    wide_y = y.astype(np.float64) if head.real_valued else y
    wide = log_prob_and_gradients(head, raw.astype(np.float64), wide_y)
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert a.dtype == jnp.float32
        # As for values; sums of terms of O(10) that cancel leave 1e-5 absolute.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- structure


@every_untied_case
def test_batch_vmap_and_loop_agree(case):
    head, raw, y = numpy_rows(case)
    batched = answers(head(raw), y)["log_prob"]
    np.testing.assert_allclose(batched, case.oracle(head, raw).log_prob(y), rtol=1e-10)

    def one(raw, y):
        return jaxmdn.log_prob(head(raw), y)

    single = jax.jit(one)
    loop = [single(raw[i], y[i]) for i in range(ROWS)]
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(raw, y), batched, rtol=1e-12)
    np.testing.assert_allclose(np.stack(loop), batched, rtol=1e-12)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["low-rank", "per-class", "categorical"])
def test_jit_and_eager_agree(name):
    case = next(case for case in CONTINUOUS + DISCRETE if case.name == name)
    head, *arrays = numpy_rows(case)
    raw, y = map(jnp.asarray, arrays)
    compiled = jaxmdn.log_prob(head(raw), y)
    with jax.disable_jit():
        eager = jaxmdn.log_prob(head(raw), y)
    np.testing.assert_allclose(eager, compiled, rtol=1e-12)


@every_untied_density
def test_one_component_is_the_base_family(case):
    rng, head = case.rng(), case.make(1, 2)
    raw, y = oracles.random_raw(rng, head, (4,)), oracles.random_target(rng, head, (4,))
    mixture = head(raw)
    if case.name == "per-class":  # the inner mixtures, [4, C]
        mixture, y = mixture.components, np.asarray(y)[:, None]
    base = np.asarray(jaxmdn.log_prob(mixture.components, np.asarray(y)[..., None, :]))[..., 0]
    np.testing.assert_allclose(jaxmdn.log_prob(mixture, y), base, rtol=1e-12)
    np.testing.assert_array_equal(mixture.weights(), np.ones_like(mixture.logits))


@every_density
def test_order_of_the_components_does_not_matter(case):
    head, raw, y = numpy_rows(case)
    mixture = head(raw)
    count = mixture.num_components
    order = np.roll(np.arange(count), 1)

    def permute(parameter, rank):
        shared = parameter.shape[-rank] == 1
        return parameter if shared else jnp.asarray(np.asarray(parameter).take(order, -rank))

    permuted = mixture.map_parameters(permute)
    assert not np.array_equal(permuted.logits, mixture.logits)
    found, expected = answers(permuted, y), answers(mixture, y)
    for name, rtol in (("log_prob", 1e-12), ("cdf", 1e-12), ("covariance", 1e-10)):
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol)


@every_untied_case
def test_rows_do_not_touch_each_other(case):
    head, raw, y = numpy_rows(case)
    clean, others = log_prob_and_gradients(head, raw, y), np.arange(ROWS) != 1
    spoiled_y = np.where(others[:, None], y, np.nan) if head.real_valued else y
    spoiled = log_prob_and_gradients(head, np.where(others[:, None], raw, np.nan), spoiled_y)
    assert np.isnan(spoiled[0][1])
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(spoiled), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[others], np.asarray(b)[others])


@every_untied_case
def test_batches_of_no_row_and_of_one(case):
    head, raw, y = numpy_rows(case)
    value, gradients = log_prob_and_gradients(head, raw[:0], y[:0])
    assert value.shape == (0,)
    assert gradients[0].shape == (0, head.num_outputs)
    value, _ = log_prob_and_gradients(head, raw[:1], y[:1])
    np.testing.assert_allclose(value, case.oracle(head, raw[:1]).log_prob(y[:1]), rtol=1e-10)


# ------------------------------------------------------------------------------------- dtypes


@every_case
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_in_is_dtype_out(case, dtype):
    head, raw, y = numpy_rows(case, dtype)
    compute = jnp.float64 if dtype == jnp.float64 else jnp.float32

    def everything(raw, y):
        mixture = head(raw)
        result = {
            "own": jax.tree.leaves(mixture),
            "log_prob": jaxmdn.log_prob(mixture, y),
            "sample": jaxmdn.sample(jax.random.key(0), mixture, (5,)),
        }
        if head.real_valued:
            moments = (jaxmdn.mean, jaxmdn.variance, jaxmdn.covariance)
            result["moments"] = [moment(mixture) for moment in moments]
        return result

    result = jax.eval_shape(everything, raw, y)
    assert {leaf.dtype for leaf in result["own"]} == {jnp.dtype(dtype)}
    assert result["log_prob"].dtype == compute
    assert result["log_prob"].shape == (ROWS,)
    assert result["sample"].shape == (5, *y.shape)
    assert result["sample"].dtype == (dtype if head.real_valued else jnp.int32)
    if head.real_valued:
        assert [m.dtype for m in result["moments"]] == [jnp.dtype(dtype)] * 3
        assert [m.shape for m in result["moments"]] == [y.shape, y.shape, (*y.shape, D)]


@every_untied_density
def test_half_precision_moments(case, float16):
    head, raw, y = numpy_rows(case, jnp.float16)
    mixture = head(raw)
    found, dense = answers(mixture, y), oracles.of_mixture(mixture)
    # A handful of float16 roundings of 5e-4 each.
    for name, expected, tolerance in (
        ("mean", dense.mean(), 2e-3),
        ("covariance", dense.covariance(), 5e-3),
    ):
        value = np.asarray(found[name], np.float64)
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------- traces


@every_untied_case
def test_one_trace_per_shape(case, monkeypatch):
    head, raw, y = numpy_rows(case)
    traces = []
    kind, build = type(head), type(head).build

    def counted(self, raw):
        traces.append(raw.shape)
        return build(self, raw)

    monkeypatch.setattr(kind, "build", counted)
    raw, y = (np.concatenate([a, a[:5]]) for a in (raw, y))  # 13 rows, as in no other test
    for scale in (1.0, 2.0, 3.0):
        again = case.make(K, D)  # equal, but another instance
        again(scale * raw)
        jaxmdn.nll(again, scale * raw, y)
        # One of the head, one or two of the loss (its shapes, its value); a single row says what
        # the support is. Equal heads add none.
        rows = [shape for shape in traces if len(shape) > 1]
        assert rows in ([raw.shape] * 2, [raw.shape] * 3)
        assert len(traces) <= 4
        first = len(rows) if scale == 1.0 else first
        assert len(rows) == first
    jaxmdn.nll(head, raw[:12], y[:12])
    rest = [shape for shape in traces if len(shape) > 1][first:]
    assert rest == [(12, head.num_outputs)] * (first - 1)
