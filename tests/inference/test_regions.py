"""Highest-density regions: against a fine search in NumPy, closed forms and samples."""

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

import jaxmdn
from jaxmdn.components import Normal
from jaxmdn.inference import level_sets

KINDS = ("random", "spikes", "far", "equal", "dead", "skewed", "merging", "single")


def parameters(rng, kind, rows, K):
    """Logits, locations and scales ``[rows, K]`` that are hard in one way each."""
    logits, loc = rng.normal(size=(rows, K)), 3 * rng.normal(size=(rows, K))
    scale = np.exp(rng.normal(size=(rows, K)))
    if kind == "spikes":  # a ratio of scales of up to 1e4
        scale, loc = 10.0 ** rng.uniform(-4, 0, (rows, K)), rng.normal(size=(rows, K))
        logits = 3 * logits
    elif kind == "far":  # between the modes the density underflows
        loc = rng.normal(size=(rows, K)) * 10.0 ** rng.uniform(0, 3, (rows, 1))
    elif kind == "equal":
        loc = np.arange(K) * rng.uniform(1, 10, (rows, 1))
        logits, scale = np.zeros((rows, K)), np.ones((rows, K))
    elif kind == "dead":  # weights of exactly zero, some of them far away
        loc[:, 1:] = np.where(rng.random((rows, K - 1)) < 0.3, 1e6, loc[:, 1:])
        logits = np.where((loc == 1e6) | (rng.random((rows, K)) < 0.2), -np.inf, logits)
        logits[:, 0] = 0.0
    elif kind == "skewed":
        loc, scale = (np.cumsum(rng.random((rows, K)), -1) for _ in range(2))
    elif kind == "merging":  # two modes about to become one
        loc = np.where(np.arange(K) % 2, 1.0, -1.0) * (1 + 1e-3 * rng.normal(size=(rows, 1)))
        logits, scale = np.zeros((rows, K)), np.ones((rows, K))
    elif kind == "single":
        logits[:, 1:] = -40.0
    return logits, loc, scale


def univariate(logits, loc, scale, dtype=np.float64):
    logits, loc, scale = (jnp.asarray(x, dtype) for x in (logits, loc, scale))
    return jaxmdn.Mixture(
        logits=logits, components=Normal(loc=loc[..., None], scale=scale[..., None])
    )


def log_density(weights, loc, scale, y):
    z = (np.asarray(y)[..., None] - loc) / scale
    with np.errstate(divide="ignore"):
        terms = np.log(weights) - 0.5 * z * z - np.log(scale) - 0.5 * np.log(2 * np.pi)
    return special.logsumexp(terms, axis=-1)


def exact_slope(weights, loc, scale, y):
    """Derivative of the log-density, by responsibilities in the log domain."""
    z = (y[..., None] - loc) / scale
    terms = np.log(weights) - 0.5 * z * z - np.log(scale)
    return np.sum(special.softmax(terms, axis=-1) * -z / scale, axis=-1)


def bisect(left, right, is_left):
    for _ in range(60):
        middle = (left + right) / 2
        stays = is_left(middle)
        left, right = np.where(stays, middle, left), np.where(stays, right, middle)
    return (left + right) / 2


def exact_turns(weights, loc, scale, points=801):
    """A dense grid, the turning points of the density, and which of those are modes."""
    grid = np.unique((loc[:, None] + scale[:, None] * np.linspace(-13, 13, points)).ravel())
    for fineness in (401, None):  # a pair of modes may hide in one cell: look again, more finely
        rising = exact_slope(weights, loc, scale, grid) > 0
        cells = np.nonzero(rising[1:] != rising[:-1])[0]
        left, right = grid[cells], grid[cells + 1]
        if fineness:
            fine = np.linspace(left, right, fineness).ravel()
            grid = np.unique(np.concatenate([grid, fine]))
    up = rising[cells]
    turns = bisect(left, right, lambda y: (exact_slope(weights, loc, scale, y) > 0) == up)
    return grid, turns, up


def exact_region(weights, loc, scale, log_t):
    """Ends of ``{log p >= log_t}`` and its probability, by a dense grid and bisection, float64."""
    alive = weights > 0
    weights, loc, scale = weights[alive], loc[alive], scale[alive]
    grid, turns, _ = exact_turns(weights, loc, scale)
    grid = np.sort(np.concatenate([grid, turns]))
    inside = log_density(weights, loc, scale, grid) >= log_t
    cells = np.nonzero(inside[1:] != inside[:-1])[0]
    enters = inside[cells + 1]
    ends = bisect(
        grid[cells],
        grid[cells + 1],
        lambda y: (log_density(weights, loc, scale, y) >= log_t) != enters,
    )
    below = np.sum(weights * special.ndtr((ends[:, None] - loc) / scale), axis=-1)
    return ends, np.sum(np.where(enters, -below, below))


def exact_masses(logits, loc, scale, log_t):
    weights = special.softmax(logits, axis=-1)
    rows = zip(weights, loc, scale, log_t, strict=True)
    return np.array([exact_region(*row)[1] for row in rows])


def exact_weights(logits):
    return special.softmax(logits, axis=-1)


# One shape for most tests, so that each function compiles once.
ROWS, K = 20, 5


def usual_levels(rng):
    usual = rng.choice([0.5, 0.9, 0.95, 0.99, 0.9999], ROWS)
    return np.where(rng.random(ROWS) < 0.5, rng.uniform(5e-3, 0.995, ROWS), usual)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_intervals_hold_their_level_and_have_one_density_at_their_ends(seed, kind):
    rng = np.random.default_rng(seed)
    logits, loc, scale = parameters(rng, kind, ROWS, K)
    levels = usual_levels(rng)
    lower, upper = jaxmdn.hdr_intervals(univariate(logits, loc, scale), jnp.asarray(levels))
    assert lower.shape == upper.shape == (ROWS, K)
    lower, upper = np.asarray(lower), np.asarray(upper)
    used = np.isfinite(lower)
    np.testing.assert_array_equal(used, np.isfinite(upper))
    np.testing.assert_array_equal(used, np.arange(K) < used.sum(-1, keepdims=True))
    assert np.all((upper > lower)[used])
    assert np.all((lower[:, 1:] > upper[:, :-1])[used[:, 1:]])
    errors = []
    for row in zip(exact_weights(logits), loc, scale, lower, upper, used, levels, strict=True):
        (*mixture, left, right, kept, level) = row
        heights = log_density(*mixture, np.concatenate([left[kept], right[kept]]))
        # At a spike an end's last place is worth 1e-12 of its width, times the slope.
        assert np.ptp(heights) < 1e-8
        ends, mass = exact_region(*mixture, np.mean(heights))
        errors.append(abs(mass - level))
        assert len(ends) == 2 * kept.sum()
    # A mode cut within 1e-12 of its top costs 1e-6: hardly ever.
    assert np.sum(np.array(errors) > 1e-9) <= 1
    assert max(errors) < 1e-5


def test_levels_are_exact_and_uniform_for_own_samples():
    rng, found = np.random.default_rng(2), []
    for kind in KINDS:
        logits, loc, scale = parameters(rng, kind, ROWS, K)
        weights = exact_weights(logits)
        chosen = np.array([rng.choice(K, p=w) for w in weights])[:, None]
        centre, width = (np.take_along_axis(values, chosen, -1) for values in (loc, scale))
        y = centre + width * rng.normal(size=chosen.shape)
        rows = list(zip(weights, loc, scale, y, strict=True))
        expected = [exact_region(w, m, s, log_density(w, m, s, v)[0])[1] for w, m, s, v in rows]
        level = jaxmdn.hdr_level(univariate(logits, loc, scale), jnp.asarray(y)).value
        np.testing.assert_allclose(level, expected, atol=1e-9)
        found.append(level)
    assert stats.kstest(np.concatenate(found), "uniform").pvalue > 1e-3


@pytest.mark.optimised
def test_float32_thresholds_are_exact_to_the_rounding_of_the_log_density(monkeypatch):
    monkeypatch.setattr(level_sets, "MANY_ROWS", ROWS)  # some rows take more steps than others
    solve = jax.jit(lambda mixture, level: level_sets.solve_level(mixture, level)[0])
    rng, off = np.random.default_rng(3), []
    for kind in KINDS:
        rows = *parameters(rng, kind, ROWS, K), usual_levels(rng)
        rows = [np.asarray(x, np.float32) for x in rows]
        log_t = solve(univariate(*rows[:3], np.float32), jnp.asarray(rows[3]))
        assert log_t.dtype == jnp.float32
        logits, loc, scale, levels = (x.astype(np.float64) for x in rows)
        log_t = np.asarray(log_t, np.float64)
        # log p carries a few roundings of its own size, and those of z = (y - loc) / scale, which
        # grow with loc / scale: at a spike the region cannot be told more finely. Where a mode is
        # cut near its top that moves the probability by much more than 1e-5.
        worst = np.max(np.where(np.isfinite(logits), np.abs(loc) / scale, 0), axis=-1)
        slack = 2.0**-23 * (16 + 4 * np.abs(log_t) + 4 * worst)
        most, least = (exact_masses(logits, loc, scale, log_t + d) for d in (-slack, slack))
        off.append(np.maximum(least - levels, levels - most))
    # One in a hundred may meet more kinks than the steps allow for.
    assert np.quantile(off, 0.99) < 1e-5
    assert np.max(off) < 3e-3


def test_one_normal_is_its_central_interval():
    levels = np.array([1e-3, 0.5, 0.9, 0.999999])
    normal, mixture = stats.norm(1.5, 0.5), univariate([0.0], [1.5], [0.5])
    lower, upper = jaxmdn.hdr_intervals(mixture, jnp.asarray(levels))
    ends = normal.ppf((1 + levels) / 2)
    np.testing.assert_allclose(upper[:, 0], ends, rtol=1e-10)
    np.testing.assert_allclose(lower[:, 0], 3.0 - ends, rtol=1e-10)


def exact_threshold(logits, loc, scale, level):
    weights = special.softmax(logits)
    return optimize.brentq(
        lambda t: exact_region(weights, loc, scale, t)[1] - level, -30, 5, xtol=1e-14, rtol=1e-14
    )


# Two intervals; one whose valley is above the threshold; three modes, of which the region has two.
DERIVATIVE_CASES = np.array(
    [
        [[0.2, -0.1, -9.0], [-2.0, 2.0, 0.5], [0.7, 1.0, 3.0]],
        [[0.0, 0.3, -0.2], [-1.0, 1.2, 5.0], [0.7, 0.7, 0.6]],
        [[0.0, 0.5, -2.5], [-3.0, 0.0, 6.0], [0.5, 0.7, 1.5]],
    ]
)


def test_derivatives_of_regions():
    """By Newton's method for ends and threshold together, from those of the exact search."""
    shares = np.array([0.7, 1.3, -0.4])

    def total(arguments, level, y):
        mixture = univariate(*jnp.moveaxis(arguments, -2, 0))
        lower, upper = jaxmdn.hdr_intervals(mixture, level)
        used = jnp.isfinite(lower)
        length = jnp.sum(jnp.where(used, upper, 0) - jnp.where(used, lower, 0), axis=-1)
        outputs = jnp.stack([lower[:, 0], length, jaxmdn.hdr_level(mixture, y).value])
        return jnp.sum(outputs * jnp.asarray(shares)[:, None])

    def exact_row(case, level, y):
        real = np.real(case)
        weights, loc, scale = np.exp(case[0]) / np.sum(np.exp(case[0])), *case[1:]

        def of(y):  # log-density, its slope, the probability below
            z = (y[:, None] - loc) / scale
            parts = weights * np.exp(-0.5 * z * z) / (np.sqrt(2 * np.pi) * scale)
            density = np.sum(parts, -1)
            slope = np.sum(parts * -z / scale, -1) / density
            return np.log(density), slope, complex_step.ndtr(z) @ weights

        log_t = exact_threshold(*real, np.real(level))
        ends, _ = exact_region(special.softmax(real[0]), *real[1:], log_t)
        signs = np.where(np.arange(len(ends)) % 2, 1.0, -1.0)
        for _ in range(3):
            height, slope, below = of(ends)
            down = -np.ones((len(ends), 1))
            jacobian = np.block(
                [[np.diag(slope), down], [(signs * np.exp(height))[None], np.zeros((1, 1))]]
            )
            missing = np.append(height - log_t, signs @ below - level)
            move = np.linalg.solve(jacobian, missing)
            ends, log_t = ends - move[:-1], log_t - move[-1]
        here = of(y)[0]
        others, _ = exact_region(special.softmax(real[0]), *real[1:], np.real(here[0]))
        for _ in range(3):
            height, slope, below = of(others)
            others = others - (height - here) / slope
        signs = np.where(np.arange(len(others)) % 2, 1.0, -1.0)
        return np.array([ends[0], np.sum(ends[1::2] - ends[::2]), signs @ of(others)[2]])

    def exact(arguments, level, y):
        return sum(shares @ exact_row(*row) for row in zip(arguments, level, y, strict=True))

    levels, y = jnp.array([0.8, 0.9, 0.7]), jnp.array([[-1.2], [2.5], [0.9]])
    arguments = jnp.asarray(DERIVATIVE_CASES)
    complex_step.check(total, exact, arguments, levels, y, rtol=1e-8, atol=1e-8)


@pytest.mark.nightly
def test_forward_mode_and_second_derivatives():
    loc, level = jnp.asarray(DERIVATIVE_CASES[0, 1]), 0.8

    def threshold(shift):
        mixture = univariate(DERIVATIVE_CASES[0, 0], loc, jnp.array([0.7, 1.0, 3.0]) + shift)
        return jaxmdn.hdr_threshold(mixture, level).value

    first, second = jax.jit(
        lambda x: (
            jax.jvp(threshold, (x,), (jnp.ones(()),))[1],
            jax.jvp(jax.grad(threshold), (x,), (jnp.ones(()),))[1],
        )
    )(jnp.zeros(()))

    def exact(shift):
        case = DERIVATIVE_CASES[0]
        return exact_threshold(case[0], case[1], case[2] + shift, level)

    step = 1e-4
    values = [exact(sign * step) for sign in (-1, 0, 1)]
    np.testing.assert_allclose(first, (values[2] - values[0]) / (2 * step), rtol=1e-6)
    numeric = (values[2] - 2 * values[1] + values[0]) / step**2
    np.testing.assert_allclose(second, numeric, rtol=1e-4)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_several_dimensions_by_samples(covariance):
    # One normal: the squared distance is chi-squared.
    mixture = oracles.random_mixture(np.random.default_rng(7), covariance, 1, 3)
    dense = oracles.of_mixture(mixture)
    size, levels = 20000, np.array([0.5, 0.9])
    log_t, stated = jaxmdn.hdr_threshold(
        mixture, jnp.asarray(levels), key=jax.random.key(1), num_samples=size
    )
    peak, chi2 = dense.log_prob(dense.loc[0]), stats.chi2(3)
    reached = chi2.cdf(2 * (peak - np.asarray(log_t)))
    error = np.sqrt(levels * (1 - levels) / size)
    assert np.all(np.abs(reached - levels) < 5 * error)
    # Divided by the density of log p(Y), here of a half chi-squared number.
    np.testing.assert_allclose(stated, error / (2 * chi2.pdf(chi2.ppf(levels))), rtol=0.3)
    y = np.asarray(dense.loc[0]) + np.random.default_rng(8).normal(size=(4, 3))
    found, stated = jaxmdn.hdr_level(
        mixture, jnp.asarray(y), key=jax.random.key(2), num_samples=size
    )
    expected = chi2.cdf(2 * (peak - dense.log_prob(y)))
    error = np.sqrt(expected * (1 - expected) / size) + 1e-9
    assert np.all(np.abs(found - expected) < 5 * error)
    np.testing.assert_allclose(stated, np.sqrt(found * (1 - found) / size), rtol=1e-12)


def test_vmap_classes_and_low_precision():
    rng = np.random.default_rng(9)
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(2, 1, covariance="full"))
    mixture = head(jnp.asarray(rng.normal(size=(3, head.num_outputs)), jnp.bfloat16))
    levels = jnp.array([0.5, 0.9], jnp.float32)
    each = jax.vmap(lambda m: jaxmdn.hdr_threshold(m, levels).value, out_axes=1)  # two levels a row
    log_t = each(mixture)
    assert (log_t.shape, log_t.dtype) == ((2, 3), jnp.float32)
    flat = oracles.of_mixture(mixture)
    for i, j in np.ndindex(2, 3):
        scale = np.sqrt(flat.covariances[j, :, 0, 0])
        _, mass = exact_region(flat.weights[j], flat.loc[j, :, 0], scale, float(log_t[i, j]))
        assert abs(mass - float(levels[i])) < 1e-5


def test_what_is_no_level_and_no_number_gives_nan():
    loc = np.broadcast_to([0.0, 1.0, 0.0, 0.0, 0.0], (ROWS, K)).copy()
    loc[6, 0] = np.nan
    logits = np.broadcast_to([0.0, 0.0, -np.inf, -np.inf, -np.inf], (ROWS, K))
    levels, y = np.full(ROWS, 0.5), np.full((ROWS, 1), 0.5)
    levels[:5] = 0.0, 1.0, -0.1, 1.1, np.nan
    y[:3, 0] = np.nan, np.inf, 1e200
    rows = np.arange(ROWS)
    log_t = jaxmdn.hdr_threshold(
        univariate(logits, loc, np.ones((ROWS, K)), np.float32), jnp.asarray(levels, jnp.float32)
    ).value
    np.testing.assert_array_equal(np.isnan(log_t), (rows < 5) | (rows == 6))
    found = jaxmdn.hdr_level(univariate(logits, loc, np.ones((ROWS, K))), jnp.asarray(y)).value
    np.testing.assert_array_equal(np.isnan(found), (rows == 0) | (rows == 6))
    np.testing.assert_allclose(found[1:3], 1.0, atol=1e-12)
    assert found[3] < 1e-7  # 0.5 is the mode: what rounding of log p leaves, by its square root
    plane = oracles.random_mixture(np.random.default_rng(0), "diagonal", 2, 2)
    sampled = jaxmdn.hdr_threshold(
        plane, jnp.asarray(levels), key=jax.random.key(0), num_samples=10
    ).value
    np.testing.assert_array_equal(np.isnan(sampled), rows < 5)


def families():
    """Other families' mixtures over one dimension, with their exact log-density and cdf."""
    loc, scale, df = np.array([0.0, 2.0, 5.0]), np.array([1.0, 0.1, 0.5]), np.array([1.5, 3.0, 9.0])
    shape = {"loc": jnp.asarray(loc)[:, None], "scale": jnp.asarray(scale)[:, None]}
    heavy = jaxmdn.components.StudentT(**shape, df=jnp.asarray(df)[:, None])
    positive = jaxmdn.components.LogNormal(loc=jnp.asarray(loc / 5)[:, None], scale=shape["scale"])
    return [
        (jaxmdn.components.Laplace(**shape), stats.laplace(loc, scale)),
        (jaxmdn.components.Logistic(**shape), stats.logistic(loc, scale)),
        (heavy, stats.t(df, loc, scale)),
        (positive, stats.lognorm(scale, scale=np.exp(loc / 5))),
    ]


@pytest.mark.parametrize("case", range(4), ids=["laplace", "logistic", "student", "log-normal"])
def test_other_families_hold_their_level(case):
    components, exact = families()[case]
    mixture = jaxmdn.Mixture(logits=jnp.log(jnp.array([0.5, 0.2, 0.3])), components=components)
    weights = np.array([0.5, 0.2, 0.3])
    levels = np.array([0.2, 0.6, 0.9, 0.99])
    lower, upper = jaxmdn.hdr_intervals(mixture, jnp.asarray(levels))
    assert lower.shape == (4, 6)
    for row, level in enumerate(levels):
        used = np.isfinite(lower[row])
        left, right = (np.asarray(side[row])[used][:, None] for side in (lower, upper))
        mass = np.sum(exact.cdf(right) @ weights - exact.cdf(left) @ weights)
        assert abs(mass - level) < 1e-9
        heights = np.log(exact.pdf(np.concatenate([left, right])) @ weights)
        assert np.ptp(heights) < 1e-7
        # Nothing outside is denser, nothing inside is less dense.
        grid = np.linspace(1e-3, 12, 4001)[:, None]
        inside = np.any((grid > left[:, 0]) & (grid < right[:, 0]), axis=-1)
        np.testing.assert_array_equal(np.log(exact.pdf(grid) @ weights) > heights[0], inside)


LINE = univariate([0.0], [0.0], [1.0])
PLANE = oracles.random_mixture(np.random.default_rng(0), "diagonal", 2, 2)


@pytest.mark.parametrize(
    ("function", "arguments", "kind", "message"),
    [
        ("hdr_threshold", (LINE, 0.0), ValueError, r"level must lie in \(0, 1\), got 0\.0"),
        ("hdr_threshold", (LINE, 1), ValueError, r"level must lie in \(0, 1\)"),
        ("hdr_intervals", (LINE, np.array([0.5, 2.0])), ValueError, r"level must lie in \(0, 1\)"),
        ("hdr_threshold", (PLANE, 0.5), ValueError, "hdr_threshold: D = 2 needs samples"),
        ("hdr_level", (PLANE, jnp.zeros(2)), ValueError, "hdr_level: D = 2 needs samples"),
        ("hdr_intervals", (PLANE, 0.5), ValueError, "intervals for D = 1 only, got D = 2"),
        ("hdr_level", (LINE, jnp.zeros(2)), ValueError, r"y of shape \[\.\.\., 1\]"),
        ("hdr_threshold", (LINE.components, 0.5), TypeError, "expected a Mixture, got Normal"),
        (
            "hdr_level",
            (jaxmdn.Mixture(logits=jnp.zeros(2), components=LINE.components), jnp.zeros(1)),
            ValueError,
            "Mixture: expected components of batch shape",
        ),
        (
            "hdr_threshold",
            (
                jaxmdn.Mixture(
                    logits=jnp.zeros(2),
                    components=jaxmdn.components.Categorical(logits=jnp.zeros((2, 3))),
                ),
                0.5,
            ),
            TypeError,
            "needs a density over real numbers",
        ),
    ],
)
def test_errors(user_errors, function, arguments, kind, message):
    with pytest.raises(kind, match=message):
        getattr(jaxmdn, function)(*arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_density_that_is_infinite_at_both_ends(dtype):
    """Beta(1/2, 1/2), the arcsine law: ``F(y) = 2 asin(sqrt(y)) / pi``."""
    ones = jnp.ones((1, 1), dtype)
    beta = jaxmdn.components.Beta(concentration1=ones / 2, concentration0=ones / 2)
    mixture = jaxmdn.Mixture(logits=jnp.zeros(1, dtype), components=beta)
    level = np.array([0.1, 0.5, 0.9])

    @jax.jit
    def ask(level):
        threshold = jaxmdn.hdr_threshold(mixture, level)
        return jnp.sum(threshold.value), (threshold.value, jaxmdn.hdr_intervals(mixture, level))

    slope, (value, intervals) = jax.grad(ask, has_aux=True)(jnp.asarray(level, dtype))
    rtol = 2e-5 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(value, np.log(2 / np.pi / np.sin(np.pi * level / 2)), rtol=rtol)
    np.testing.assert_allclose(slope, -np.pi / 2 / np.tan(np.pi * level / 2), rtol=20 * rtol)
    end = np.sin(np.pi * level / 4) ** 2
    np.testing.assert_allclose(intervals.upper[:, 0], end, rtol=20 * rtol)
    np.testing.assert_allclose(intervals.lower[:, 1], 1 - end, rtol=20 * rtol)


NIGHTLY = pytest.mark.nightly
FALLING = [
    pytest.param("Weibull", {"concentration": 0.02, "scale": 1.0}, stats.weibull_min(0.02), id="w"),
    pytest.param("Weibull", {"concentration": 0.1, "scale": 1.0}, stats.weibull_min(0.1)),
    pytest.param("Gamma", {"concentration": 0.05, "rate": 1.0}, stats.gamma(0.05)),
    pytest.param("Gamma", {"concentration": 0.02, "rate": 1.0}, stats.gamma(0.02)),
    pytest.param("Beta", {"concentration1": 0.1, "concentration0": 2.0}, stats.beta(0.1, 2.0)),
    *(
        pytest.param("Beta", {"concentration1": a, "concentration0": a}, stats.beta(a, a))
        for a in (0.02, 0.05, 0.1, 0.3)
    ),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("family", "parameters", "law"),
    [p if p.id else pytest.param(*p.values, marks=NIGHTLY) for p in FALLING],
)
def test_densities_that_fall_from_infinity(family, parameters, law, dtype):
    """The region is all below a quantile, and the threshold the density there; or both sides are.

    Levels are such that the ends can be told from those of the support: in float32, from one.
    """
    values = {name: jnp.full((1, 1), value, dtype) for name, value in parameters.items()}
    components = getattr(jaxmdn.components, family)(**values)
    mixture = jaxmdn.Mixture(logits=jnp.zeros(1, dtype), components=components)
    rounded = {name: float(value[0, 0]) for name, value in values.items()}
    exact = law.dist(*list(rounded.values())[: len(law.args)])
    symmetric = len(set(rounded.values())) == 1 and family == "Beta"
    level = np.array([0.1, 0.3, 0.6, 0.95, 0.99], dtype)
    points = exact.ppf(np.asarray(level, float) * (0.5 if symmetric else 1.0))
    found = jax.jit(jaxmdn.hdr_threshold)(mixture, jnp.asarray(level)).value
    single = dtype == np.float32
    rtol = 1e-4 if single else 1e-7 if symmetric else 1e-9
    told = points > (2 * np.finfo(dtype).eps / rtol if symmetric else np.finfo(dtype).tiny)
    assert told.sum() >= 2
    np.testing.assert_allclose(found[told], exact.logpdf(points)[told], rtol=rtol)
    assert np.all(np.isfinite(found))
    assert np.all(np.diff(found) < 0)
