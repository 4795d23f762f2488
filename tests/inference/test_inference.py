"""Distribution functions and quantiles: against SciPy and mpmath, at the ends, and as functions."""

from functools import partial

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import questions
from head_cases import every_untied_density, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import mp
from scipy import special, stats

import jaxmdn
from jaxmdn.components import Gamma, Hurdle, Normal, Weibull
from jaxmdn.inference import sums

RNG = np.random.default_rng(20260801)
LEVELS = np.array([1e-6, 1e-3, 0.2, 0.5, 0.7, 0.999, 1 - 1e-6])


def univariate(logits, loc, scale, dtype=np.float64):
    """A mixture over one dimension from ``[..., K]`` numbers."""
    logits, loc, scale = (jnp.asarray(x, dtype) for x in (logits, loc, scale))
    return jaxmdn.Mixture(
        logits=logits, components=Normal(loc=loc[..., None], scale=scale[..., None])
    )


def random_univariate(rng, K, batch=(), dtype=np.float64):
    logits = 2.0 * rng.normal(size=(*batch, K))
    return univariate(
        logits, 3.0 * rng.normal(size=logits.shape), np.exp(rng.normal(size=logits.shape)), dtype
    )


def below_and_above(mixture, y):
    """SciPy's ``P(Y <= y)``, ``P(Y > y)`` and density of a univariate normal mixture, float64."""
    weights = special.softmax(np.asarray(mixture.logits, np.float64), axis=-1)
    loc, scale = (
        np.asarray(x, np.float64)[..., 0]
        for x in (mixture.components.loc, mixture.components.scale)
    )
    z = (np.asarray(y, np.float64) - loc) / scale
    parts = special.ndtr(z), special.ndtr(-z), stats.norm.pdf(z) / scale
    return tuple(np.sum(weights * part, axis=-1, keepdims=True) for part in parts)


def test_far_tails_do_not_cancel():
    logits, loc, scale = [0.3, -0.5], [0.0, 1.0], [1.0, 0.5]
    mixture = univariate(logits, loc, scale)
    weights = special.softmax(logits)

    def exact(sign, y):
        terms = (
            mp.mpf(w) * mp.ncdf(sign * (mp.mpf(y) - m) / mp.mpf(s))
            for w, m, s in zip(weights, loc, scale, strict=True)
        )
        return mp.fsum(terms)

    for y in (-35.0, -9.0, -1.0, 0.3, 2.0, 8.5, 33.0):
        point = jnp.array([y])
        for function, sign in ((jaxmdn.cdf, 1), (jaxmdn.survival, -1)):
            np.testing.assert_allclose(
                function(mixture, point)[0], float(exact(sign, y)), rtol=1e-12
            )
        for function, sign in ((jaxmdn.log_cdf, 1), (jaxmdn.log_survival, -1)):
            expected = float(mp.log(exact(sign, y)))
            # log_ndtr's series is worth 1e-9 relative where it takes over from log(ndtr); on the
            # other side the logarithm of a number next to one has the error of that number.
            np.testing.assert_allclose(function(mixture, point)[0], expected, rtol=1e-8, atol=1e-15)


@every_untied_density
def test_survival_and_logarithms_agree_with_the_cdf(case):
    head, raw, y = rows(case)
    mixture = head(raw)
    cdf = jaxmdn.cdf(mixture, y)
    assert cdf.shape == y.shape
    np.testing.assert_allclose(jaxmdn.survival(mixture, y), 1 - cdf, atol=1e-14)
    np.testing.assert_allclose(jaxmdn.log_cdf(mixture, y), np.log(cdf), atol=1e-9)
    np.testing.assert_allclose(jaxmdn.log_survival(mixture, y), np.log1p(-cdf), atol=1e-9)


@pytest.mark.optimised
@pytest.mark.parametrize("K", [1, 2, 8, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quantile_inverts_the_exact_cdf(K, dtype):
    rng = np.random.default_rng(K)
    mixture = random_univariate(rng, K, (400,), dtype)
    p = np.where(rng.random((400, 1)) < 0.5, -1, 1) * 10 ** rng.uniform(-6, -0.31, (400, 1))
    p = np.where(p < 0, -p, 1 - p).astype(dtype)
    y = jaxmdn.quantile(mixture, jnp.asarray(p))
    assert y.shape == (400, 1)
    assert y.dtype == dtype
    below, above, density = below_and_above(mixture, y)
    exact = p.astype(np.float64)
    error = np.where(exact > 0.5, (1 - exact) - above, below - exact)
    # What the dtype can resolve: a few units of y's last place times the density, and of p's own.
    eps = np.finfo(dtype).eps
    scale = np.max(np.abs(np.asarray(mixture.components.loc, np.float64)), axis=-2)
    floor = eps * density * (np.abs(np.asarray(y, np.float64)) + scale)
    tail = np.where(exact > 0.5, 1 - exact, exact)
    assert np.all(np.abs(error) <= 8 * floor + 64 * eps * tail)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_quantile_inverts_cdf_on_random_mixtures(seed):
    # Ten mixtures an example: a thousand in all, some weights close to zero, modes far apart.
    rng = np.random.default_rng(seed)
    mixture = univariate(
        rng.normal(size=(10, 4)) * rng.choice([0.1, 3.0, 10.0]),
        rng.normal(size=(10, 4)) * rng.choice([0.1, 3.0, 30.0]),
        np.exp(rng.normal(size=(10, 4)) * rng.choice([0.1, 1.0, 2.0])),
    )
    p = jnp.asarray(rng.uniform(1e-6, 1 - 1e-6, (10, 1)))
    y = jaxmdn.quantile(mixture, p)
    below, _, density = below_and_above(mixture, y)
    largest = np.max(np.abs(mixture.components.loc), axis=-2)
    # Rounding: a few units in the cdf's last place, and what the last place of y is worth.
    assert np.all(np.abs(below - p) <= 1e-14 + 1e-14 * density * (np.abs(y) + largest))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quantile_among_needles(dtype):
    """Widths that differ by 10,000, ten times the widest apart: nothing but rounding is missed."""
    rng, N, K = np.random.default_rng(7), 20000, 8
    mixture = univariate(
        rng.normal(size=(N, K)),
        100 * rng.normal(size=(N, K)),
        10 ** rng.uniform(-3, 1, (N, K)),
        dtype,
    )
    tail = rng.uniform(size=(N, 1)) < 0.2
    p = np.where(tail, 10 ** rng.uniform(-6, -1, (N, 1)), rng.uniform(1e-6, 1 - 1e-6, (N, 1)))
    p = jnp.asarray(p, dtype)
    y = jaxmdn.quantile(mixture, p)
    below, _, density = below_and_above(mixture, y)
    largest = np.max(np.abs(np.asarray(mixture.components.loc, np.float64)), axis=-2)
    rounding = np.finfo(dtype).eps * (1 + density * (np.abs(y) + largest))
    assert np.max(np.abs(below - np.asarray(p, np.float64)) / rounding) < 4


FAMILIES = ("normal", "laplace", "student_t", "lognormal", "gamma", "beta", "logistic", "weibull")
MANY = {
    "diagonal": jaxmdn.NormalHead(3, 2),
    "isotropic, tied": jaxmdn.NormalHead(3, 2, covariance="isotropic", tied=True),
    "full, tied": jaxmdn.NormalHead(3, 2, covariance="full", tied=True),
    "low rank": jaxmdn.NormalHead(3, 2, covariance="low_rank", rank=1),
    "families": jaxmdn.FactorizedHead(FAMILIES, 3),
    "counts": jaxmdn.FactorizedHead(("poisson", "truncated_normal"), 2),
    "heads": jaxmdn.IndependentHead((jaxmdn.NormalHead(3), jaxmdn.FactorizedHead("gamma", 2))),
    "classes": jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(3, 2)),
}


@pytest.mark.parametrize("name", MANY)
def test_many_quantiles_are_those_of_each(name):
    """A loop over the components serves many points, one sum over them few."""
    head, rng, N = MANY[name], np.random.default_rng(3), 2 * sums.FEWEST_POINTS
    raw = jnp.asarray(0.5 * rng.normal(size=(N, head.num_outputs)))
    p = jnp.asarray(rng.uniform(1e-3, 1 - 1e-3, (N, 1)))

    def total(raw, p):
        y = jaxmdn.quantile(head(raw), p)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    whole = run(raw, p)
    size = 16
    assert size * whole[1].shape[-1] < sums.FEWEST_POINTS <= whole[1].size
    parts = [run(raw[i : i + size], p[i : i + size]) for i in range(0, N, size)]
    parts = jax.tree.map(lambda *part: jnp.concatenate(part), *parts)
    for found, expected in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_quantile_of_one_component_is_scipy_s():
    for dtype, rtol in ((np.float32, 3e-6), (np.float64, 1e-12)):
        mixture = univariate([0.0], [1.5], [0.5], dtype)
        expected = stats.norm(1.5, 0.5).ppf(LEVELS.astype(dtype).astype(np.float64))
        got = jaxmdn.quantile(mixture, jnp.asarray(LEVELS, dtype)[:, None])[:, 0]
        atol = 2 * np.finfo(dtype).eps * 1.5  # where loc + scale z nearly cancels
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


@every_untied_density
def test_quantile_of_each_dimension_s_marginal(case):
    head, raw, _ = rows(case)
    mixture = head(raw)
    p = jnp.asarray(LEVELS)[:, None, None]  # [L, 1, 1] against [N, D]
    y = jaxmdn.quantile(mixture, p)
    assert y.shape == (len(LEVELS), *mixture.batch_shape, mixture.event_dim)
    np.testing.assert_allclose(jaxmdn.cdf(mixture, y), jnp.broadcast_to(p, y.shape), rtol=1e-9)
    assert bool(jnp.all(jnp.diff(y, axis=0) > 0))


def test_derivatives_are_those_of_the_implicit_function():
    mixture, p = random_univariate(RNG, 3), jnp.array([[0.3]])

    def solve(logits, loc, scale, p, upper=False):
        return jaxmdn.quantile(univariate(logits, loc, scale), p, upper=upper)[0, 0]

    arguments = (
        mixture.logits,
        mixture.components.loc[:, 0],
        mixture.components.scale[:, 0],
        p,
    )

    def missing(sign, y, logits, loc, scale, p):
        weights = np.exp(logits) / np.sum(np.exp(logits))
        return np.sum(weights * complex_step.ndtr(sign * (y[:, None] - loc) / scale), -1) - p[0]

    for upper in (False, True):
        y = np.atleast_1d(solve(*arguments, upper))
        found = jax.grad(partial(solve, upper=upper), argnums=(0, 1, 2, 3))(*arguments)
        equation = partial(missing, -1 if upper else 1)
        for i, argument in enumerate(arguments):
            for j in np.ndindex(argument.shape):
                directions = [np.zeros(np.shape(x)) for x in arguments]
                directions[i][j] = 1.0
                exact = complex_step.implicit(equation, y, arguments, directions)
                np.testing.assert_allclose(found[i][j], exact[0], rtol=1e-11)
    # Forward mode and the second derivative in p: d2y/dp2 = -f'(y) / f(y)^3.
    y = jnp.atleast_1d(solve(*arguments))
    _, _, density = below_and_above(mixture, y)
    first = jax.jvp(lambda p: jaxmdn.quantile(mixture, p), (p,), (jnp.ones((1, 1)),))[1]
    np.testing.assert_allclose(first[0], 1 / density, rtol=1e-12)
    second = jax.grad(lambda p: jax.grad(lambda p: solve(*arguments[:3], p)[()])(p)[0, 0])(p)
    slope = jax.grad(lambda y: jnp.exp(jaxmdn.log_prob(mixture, y)))(y)
    np.testing.assert_allclose(second[0], -slope / density**3, rtol=1e-9)


def test_ends_flat_stretches_and_what_is_no_probability():
    mixture = univariate([0.0, 0.0, -np.inf], [-50.0, 50.0, 1e6], [1.0, 1.0, 1.0])
    p = jnp.array([[0.0], [1.0], [jnp.nan], [-0.1], [1.1], [0.5], [1 - 1e-9]])
    y = jaxmdn.quantile(mixture, p)[:, 0]
    np.testing.assert_array_equal(y[:2], [-np.inf, np.inf])
    assert bool(jnp.all(jnp.isnan(y[2:5])))
    assert -45 < y[5] < 45  # anywhere on the stretch between the modes
    assert 50 < y[6] < 60  # a component of weight zero is not in the bracket
    gradient = jax.jacobian(lambda p: jaxmdn.quantile(mixture, p))(p)
    diagonal = np.einsum("iaia->i", gradient)
    np.testing.assert_array_equal(diagonal[:2], 0.0)
    assert np.all(np.isfinite(diagonal[5:]))
    assert diagonal[6] > 0


def test_quantile_under_jit_vmap_and_in_bfloat16():
    mixture, p = random_univariate(RNG, 4, (6,)), jnp.asarray(RNG.uniform(0.01, 0.99, (6, 1)))
    expected = jaxmdn.quantile(mixture, p)
    np.testing.assert_allclose(jax.jit(jaxmdn.quantile)(mixture, p), expected, rtol=1e-13)
    each = jax.vmap(lambda m, p: jaxmdn.quantile(m, p[None])[0])(mixture, p)
    np.testing.assert_allclose(each, expected, rtol=1e-13)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mixture)
    y = jaxmdn.quantile(half, 0.25)
    assert (y.dtype, y.shape) == (jnp.float32, (6, 1))
    np.testing.assert_allclose(jaxmdn.cdf(half, y), 0.25, atol=1e-5)


def test_quantile_of_a_single_family_is_its_own():
    normal = Normal(loc=jnp.array([1.0, 2.0]), scale=jnp.array([1.0, 0.5]))
    expected = stats.norm([1.0, 2.0], [1.0, 0.5]).ppf(0.9)
    np.testing.assert_allclose(jaxmdn.quantile(normal, 0.9), expected, rtol=1e-12)


def test_levels_lead():
    """A vector's levels come first, whatever D and the batch are; others are written out."""
    p = [0.05, 0.5, 0.95]
    for batch, D in (((), 1), ((), 3), ((3,), 1), ((3,), 3), ((2, 3), 3)):
        mixture = oracles.random_mixture(np.random.default_rng(0), "diagonal", 2, D, batch)
        found = jaxmdn.quantile(mixture, p)
        assert found.shape == (3, *batch, D)
        for level, values in zip(p, found, strict=True):
            np.testing.assert_allclose(values, jaxmdn.quantile(mixture, level), rtol=1e-13)
        for same in (np.array(p), jnp.asarray(p), np.reshape(p, (3, *(1,) * (len(batch) + 1)))):
            np.testing.assert_allclose(jaxmdn.quantile(mixture, same), found, rtol=1e-13)
        y = jnp.ones((*batch, D))
        score = jaxmdn.scoring.pinball_score(mixture, y, p)
        slope = np.where(y > found, np.reshape(p, (3, *(1,) * y.ndim)), 0)
        slope = np.where(y > found, slope, np.reshape(p, (3, *(1,) * y.ndim)) - 1)
        np.testing.assert_allclose(score, slope * (y - found), rtol=1e-12)
        recalibration = jaxmdn.calibration.recalibrate(
            jnp.linspace(0.01, 0.99, 99 * D).reshape(-1, D)
        )
        again = jaxmdn.calibration.recalibrated_quantile(recalibration, mixture, p)
        assert again.shape == found.shape


def test_leading_axes_of_one_stay():
    """Levels have axes before the batch's, which may be of one row, of one row."""
    rows = oracles.random_mixture(np.random.default_rng(0), "diagonal", 2, 2, (3,))
    found = jaxmdn.quantile(rows, [0.2, 0.7])
    for lead in ((1,), (1, 1), (1, 1, 1)):
        wide = jax.tree.map(lambda leaf, lead=lead: leaf.reshape(*lead, *leaf.shape), rows)
        again = jaxmdn.quantile(wide, [0.2, 0.7])
        np.testing.assert_allclose(again, found.reshape(2, *lead, 3, 2), rtol=1e-13)
        one = jaxmdn.quantile(wide[..., :1], 0.7)
        np.testing.assert_allclose(one, found[1, :1].reshape(*lead, 1, 2), rtol=1e-13)


@pytest.mark.nightly
@pytest.mark.parametrize("name", questions.heads())
def test_leading_axes_of_one_stay_whatever_the_family(name):
    head = questions.heads()[name]
    raw, _ = questions.rows(head, 3)
    try:
        found = jaxmdn.quantile(head(raw), [0.2, 0.7])
    except questions.REFUSALS:
        pytest.skip("has no quantiles")
    again = jaxmdn.quantile(head(raw[None, None]), [0.2, 0.7])
    np.testing.assert_allclose(again, found[:, None, None], rtol=1e-12)


@pytest.mark.nightly
@pytest.mark.parametrize("name", questions.heads())
def test_slopes_have_no_corner_where_a_head_begins(name):
    """Derivatives at raw outputs of zero lie between those on both sides."""
    head = questions.heads()[name]
    y = jnp.full((1, head(jnp.zeros((1, head.num_outputs))).event_dim), 1.0)

    @jax.jit
    def slopes(raw):
        ask = (jaxmdn.mean, jaxmdn.variance, jaxmdn.cdf, jaxmdn.survival, jaxmdn.log_prob)
        found = []
        for function in ask:
            of_target = (y,) * (function in ask[2:])
            try:
                found.append(jax.grad(lambda r: jnp.sum(function(head(r), *of_target)))(raw))  # noqa: B023
            except questions.REFUSALS:
                continue
        return found

    zero = jnp.zeros((1, head.num_outputs))
    at, above, below = (slopes(zero + move) for move in (0.0, 1e-7, -1e-7))
    for own, *sides in zip(at, above, below, strict=True):
        np.testing.assert_allclose(own, np.mean(sides, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_exceeded_hardly_ever(dtype):
    """The inverse of ``survival`` where one minus the level is one, and quantiles next to zero."""
    levels = np.array([1e-30, 1e-12, 1e-8, 1e-3, 0.4, 0.7], dtype)
    exact = levels.astype(np.float64)
    weights = np.array([0.9, 0.1 - 1e-6, 1e-6])
    logits = jnp.log(jnp.asarray(weights, dtype))
    a, rate = np.array([1.0, 0.5, 3.0]), np.array([1.0, 2.0, 0.5])
    loc, scale = np.array([0.0, 3.0, -2.0]), np.array([1.0, 0.5, 2.0])

    def column(values):
        return jnp.asarray(values, dtype)[:, None]

    cases = [
        (Gamma(concentration=column(a), rate=column(rate)), stats.gamma(a, scale=1 / rate)),
        (Normal(loc=column(loc), scale=column(scale)), stats.norm(loc, scale)),
        (Weibull(concentration=column(a), scale=column(rate)), stats.weibull_min(a, scale=rate)),
    ]
    for components, oracle in cases:
        mixture = jaxmdn.Mixture(logits=logits, components=components)
        for upper in (False, True):
            y = jaxmdn.quantile(mixture, levels, upper=upper)
            assert y.dtype == dtype
            y = np.asarray(y, np.float64)
            reached = (oracle.sf if upper else oracle.cdf)(y) @ weights
            slope = oracle.pdf(np.where(y == 0, 1, y)) @ weights * np.abs(y[:, 0])
            room = 64 * np.finfo(dtype).eps * (1 + slope / exact)
            some = np.abs(y[:, 0]) > np.finfo(dtype).tiny  # a quantile may underflow
            assert some.sum() >= 5
            assert np.all(np.abs(reached / exact - 1)[some] < room[some]), components
            back = getattr(jaxmdn, "survival" if upper else "cdf")(mixture, jnp.asarray(y, dtype))
            np.testing.assert_allclose(back[some, 0], levels[some], rtol=2e3 * np.finfo(dtype).eps)


def test_parameters_that_are_no_numbers_have_no_quantile():
    nan = jnp.full((2, 1), jnp.nan)
    good = Gamma(concentration=jnp.ones((2, 1)), rate=jnp.ones((2, 1)))
    bad = Gamma(concentration=nan, rate=jnp.ones((2, 1)))
    for density in (Hurdle(base=good, logit=nan), Hurdle(base=bad, logit=jnp.zeros((2, 1))), bad):
        mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=density)
        for p in (1e-9, 0.5, 0.999):
            for upper in (False, True):
                assert np.isnan(jaxmdn.quantile(mixture, p, upper=upper)).all()
                assert np.isnan(jaxmdn.quantile(density, p, upper=upper)).all()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((univariate([0.0], [0.0], [1.0]), 1.5), ValueError, r"quantile: p must lie in \[0, 1\]"),
        (
            (univariate([0.0], [0.0], [1.0]), np.array([0.1, -0.2])),
            ValueError,
            r"quantile: p must lie in \[0, 1\]",
        ),
        ((jnp.zeros(3), 0.5), TypeError, "quantile: expected a density"),
        (
            (oracles.random_mixture(RNG, "diagonal", 2, 3), jnp.full((4, 2), 0.5)),
            ValueError,
            r"quantile: .*broadcast",
        ),
        (
            (oracles.random_mixture(RNG, "diagonal", 2, 3, (5, 2)), jnp.full((3, 1), 0.5)),
            ValueError,
            r"a vector of levels or an array \[levels\.\.\., 5, 2, 3\] .* got shape \[3, 1\]",
        ),
        ((univariate([0.0], [0.0], [1.0]), [0.1, 1.2]), ValueError, r"p must lie in \[0, 1\]"),
        (
            (jaxmdn.CategoricalHead(3)(jnp.zeros(3)), 0.5),
            TypeError,
            "quantile: not defined for Categorical",
        ),
    ],
)
def test_quantile_errors(user_errors, arguments, kind, message):
    with pytest.raises(kind, match=message):
        jaxmdn.quantile(*arguments)
