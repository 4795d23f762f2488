"""Regions and modes on a circle, beside atoms, and of the marginals of mixed densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from complex_step import implicit
from scipy import optimize, special, stats

import jaxmdn
from jaxmdn.components import Gamma, Hurdle, VonMises
from jaxmdn.heads import FactorizedHead, Family, IndependentHead

ROWS, K = 24, 3
X, W = np.polynomial.legendre.leggauss(400)


def circles(rng):
    """Logits, means and concentrations, some of them across the cut, narrow, nearly uniform."""
    loc = np.where(rng.random((ROWS, K)) < 0.4, np.pi - 0.2 * rng.random((ROWS, K)), 0)
    loc = np.where(loc == 0, rng.uniform(-4, 4, (ROWS, K)), loc)
    k = rng.choice([0.05, 0.7, 4.0, 50.0, 1e3], (ROWS, K))
    return rng.normal(size=(ROWS, K)), loc, k


def angles(logits, loc, k):
    parts = VonMises(loc=loc[..., None], concentration=k[..., None])
    return jaxmdn.Mixture(logits=logits, components=parts)


def density(logits, loc, k, y):
    """Analytic in everything: also for complex numbers."""
    weights = np.exp(logits - special.logsumexp(np.real(logits)))
    weights = weights / np.sum(weights)
    gap = y[..., None] - loc
    each = np.exp(-2 * k * np.sin(gap / 2) ** 2) / (2 * np.pi * special.ive(0, np.real(k)))
    if np.iscomplexobj(k):  # I0' = I1, of the scaled ones
        ratio = special.ive(1, np.real(k)) / special.ive(0, np.real(k)) - 1
        each = each * np.exp(-1j * np.imag(k) * ratio)
    return np.sum(weights * each, axis=-1)


def mass(case, lower, upper):
    """The probability of arcs, by Gauss and Legendre's rule on eight pieces of each."""
    steps = np.linspace(0, 1, 9)
    ends = lower + (upper - lower) * steps[:, None]
    half = (ends[1:] - ends[:-1])[..., None] / 2
    return np.sum(half * W * density(*case, ends[:-1, :, None] + half * (X + 1)))


@jax.jit
def asked(logits, loc, k, level, y):
    mixture = angles(logits, loc, k)
    region = jaxmdn.hdr_intervals(mixture, level)
    return (
        region,
        jaxmdn.hdr_threshold(mixture, level).value,
        jaxmdn.hdr_level(mixture, y).value,
        jaxmdn.modes(mixture),
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_regions_of_angles_go_around_the_circle(dtype):
    rng = np.random.default_rng(5)
    logits, loc, k = (v.astype(dtype) for v in circles(rng))
    level, y = rng.uniform(0.05, 0.98, ROWS).astype(dtype), rng.uniform(-7, 7, (ROWS, 1))
    region, threshold, reached, modes = asked(logits, loc, k, level, jnp.asarray(y, dtype))
    double = [np.asarray(v, np.float64) for v in (logits, loc, k)]
    grid = np.linspace(-np.pi, np.pi, 20001)
    room = 1e-9 if dtype == np.float64 else 2e-4
    crossed = 0
    for row in range(ROWS):
        case = [v[row] for v in double]
        t, used = float(threshold[row]), np.isfinite(region.lower[row])
        lower, upper = (np.asarray(v[row], float)[used] for v in region)
        assert np.all((lower < upper) & (lower >= -np.pi - 1e-6) & (upper <= np.pi + 1e-6))
        assert np.all(upper[:-1] < lower[1:])
        assert abs(mass(case, lower, upper) - level[row]) < room
        crossed += np.any(upper > np.pi - 1e-6)
        inner = np.concatenate([lower, upper])
        inner = inner[np.abs(inner) < np.pi - 1e-6]
        heights = np.log(density(*case, inner))
        assert np.all(np.abs(heights - t) < room * 10)
        dense = np.log(np.maximum(density(*case, grid), 1e-300))
        inside = np.any((grid[:, None] >= lower) & (grid[:, None] <= upper), axis=-1)
        clear = np.abs(dense - t) > 100 * room
        np.testing.assert_array_equal(inside[clear], (dense > t)[clear])
        # The level of a target is that of the region which ends there.
        height = density(*case, y[row])
        fine = density(*case, np.linspace(-np.pi, np.pi, 200001)[:-1])
        assert (
            abs(np.mean(np.where(fine >= height, fine, 0)) * 2 * np.pi - float(reached[row])) < 2e-3
        )
        # All modes, where they are.
        found = np.isfinite(modes.log_prob[row])
        top = fine > 1e-9  # beyond, rounding makes modes of its own
        top &= (fine > np.roll(fine, 1)) & (fine >= np.roll(fine, -1))
        expected = np.linspace(-np.pi, np.pi, 200001)[:-1][top]
        place = np.asarray(modes.location[row, :, 0], float)[found]
        assert len(place) == len(expected)
        gap = np.abs(np.exp(1j * np.sort(place)) - np.exp(1j * np.sort(expected)))
        assert np.max(np.minimum(gap, abs(gap - 2))) < 2e-3
        exact = np.log(density(*case, place))
        np.testing.assert_allclose(np.asarray(modes.log_prob[row])[found], exact, atol=10 * room)
    assert crossed > 5


def test_regions_of_angles_move_with_the_parameters():
    case = np.array([0.3, -0.2, 0.1]), np.array([3.0, -2.5, 0.4]), np.array([6.0, 9.0, 4.0])
    level = 0.8

    @jax.jit
    def ends(logits, loc, k, level):
        region = jaxmdn.hdr_intervals(angles(logits, loc, k), level)
        threshold = jaxmdn.hdr_threshold(angles(logits, loc, k), level).value
        return jnp.stack([*region.lower[:3], *region.upper[:3], threshold])

    found = np.asarray(ends(*case, level))
    assert found[0] == -np.pi
    assert found[5] == np.pi
    free = np.array([1, 2, 3, 4])  # the ends that are none of the cut, in `found`

    def equations(solution, logits, loc, k, level):
        """All ends are as dense as the threshold; the arcs between them hold the level."""
        points, t = solution[:4], solution[4]
        starts, stops = points[:2], np.stack([points[3], points[2] + 2 * np.pi])
        half = (stops - starts)[:, None] / 2
        inside = np.sum(half * W * density(logits, loc, k, starts[:, None] + half * (X + 1)))
        return np.append(np.log(density(logits, loc, k, points)) - t, inside - level)

    solution = np.append(found[np.asarray(free)], found[6])
    assert np.max(np.abs(equations(solution, *case, level))) < 1e-9
    slopes = jax.jit(jax.jacfwd(ends, argnums=(0, 1, 2, 3)))(*case, level)
    for i in range(3):
        for j in range(K):
            directions = [np.zeros(K), np.zeros(K), np.zeros(K), 0.0]
            directions[i][j] = 1.0
            exact = implicit(equations, solution, [*case, level], directions)
            np.testing.assert_allclose(
                slopes[i][np.append(free, 6), j], exact, rtol=1e-7, atol=1e-9
            )
    exact = implicit(equations, solution, [*case, level], [*np.zeros((3, K)), 1.0])
    np.testing.assert_allclose(slopes[3][np.append(free, 6)], exact, rtol=1e-7)


RAIN = stats.gamma(np.array([2.0, 3.0]), scale=1 / np.array([1.0, 0.8]))
SHARES, DRY = np.array([0.4, 0.6]), np.array([0.5, 0.2])


def rain():
    base = Gamma(concentration=jnp.array([[2.0], [3.0]]), rate=jnp.array([[1.0], [0.8]]))
    parts = Hurdle(base=base, logit=jnp.asarray(special.logit(DRY))[:, None])
    return jaxmdn.Mixture(logits=jnp.log(jnp.asarray(SHARES)), components=parts)


def wet(y, function="pdf"):
    return getattr(RAIN, function)(np.asarray(y)[..., None]) @ (SHARES * (1 - DRY))


def test_an_atom_comes_first():
    """Of length zero, it belongs to every region; the rest of the level is the density's."""
    zeros = float(SHARES @ DRY)
    levels = np.array([0.1, zeros - 1e-6, zeros + 0.05, 0.6, 0.95])
    lower, upper = (np.asarray(v) for v in jaxmdn.hdr_intervals(rain(), jnp.asarray(levels)))
    threshold = np.asarray(jaxmdn.hdr_threshold(rain(), jnp.asarray(levels)).value)
    np.testing.assert_array_equal(np.isposinf(threshold), levels < zeros)
    for row, level in enumerate(levels):
        used = np.isfinite(lower[row])
        assert lower[row, 0] == upper[row, 0] == 0
        assert used.sum() == (1 if level < zeros else 2)
        if level > zeros:
            ends = np.array([lower[row, 1], upper[row, 1]])
            assert abs(zeros + wet(ends[1], "cdf") - wet(ends[0], "cdf") - level) < 1e-9
            np.testing.assert_allclose(np.log(wet(ends)), threshold[row], atol=1e-9)
    y = jnp.array([[0.0], [3.0], [9.0], [-1.0], [jnp.nan]])
    found = np.asarray(jaxmdn.hdr_level(rain(), y).value)
    assert found[0] == pytest.approx(zeros, rel=1e-12)
    for index in (1, 2):
        height = wet(float(y[index, 0]))
        peak = optimize.minimize_scalar(lambda t: -wet(t), bounds=(0.5, 8), method="bounded").x
        one = optimize.brentq(lambda t, h=height: wet(t) - h, 1e-9, peak, xtol=1e-13)
        two = optimize.brentq(lambda t, h=height: wet(t) - h, peak, 60, xtol=1e-13)
        exact = zeros + wet(two, "cdf") - wet(one, "cdf")
        assert found[index] == pytest.approx(exact, abs=1e-9)
    assert found[3] == pytest.approx(1.0, abs=1e-12)
    assert np.isnan(found[4])


def test_an_atom_is_the_first_mode():
    location, height = jaxmdn.modes(rain())
    assert location[0, 0] == 0
    assert height[0] == np.inf
    peak = optimize.minimize_scalar(lambda t: -wet(t), bounds=(0.5, 8), method="bounded").x
    assert float(location[1, 0]) == pytest.approx(peak, abs=1e-5)
    assert float(height[1]) == pytest.approx(np.log(wet(peak)), rel=1e-9)
    assert np.all(np.isneginf(height[2:]))
    # Where it has no weight there is none.
    never = rain()
    parts = Hurdle(base=never.components.base, logit=jnp.full((2, 1), -jnp.inf))
    location, _ = jaxmdn.modes(jaxmdn.Mixture(logits=never.logits, components=parts))
    assert location[0, 0] > 1
    assert np.isinf(location[-1, 0])


def test_atoms_of_several_dimensions_by_samples():
    head = FactorizedHead((Family("hurdle", base="normal"), "normal"), 2)
    mixture = head(jnp.asarray(np.random.default_rng(1).normal(size=(1, head.num_outputs))))
    weights = special.softmax(np.asarray(mixture.logits)[0])
    share = weights @ special.expit(np.asarray(mixture.components.parts[0].logit)[0, :, 0])
    key, size = jax.random.key(0), 20000
    level = jaxmdn.hdr_level(mixture, jnp.array([[[0.0, 0.3]]]), key=key, num_samples=size).value
    assert abs(float(level[0, 0]) - share) < 4 * np.sqrt(share * (1 - share) / size)
    for q, infinite in ((0.5 * share, True), (0.5 + 0.5 * share, False)):
        threshold = jaxmdn.hdr_threshold(mixture, q, key=key, num_samples=size).value
        assert bool(np.isinf(threshold[0])) == infinite


MIXED = ("normal", "von_mises", Family("hurdle", base="gamma"), "gamma", "poisson")


@pytest.mark.parametrize("d", range(len(MIXED)))
def test_a_marginal_of_a_mixed_density_is_one_of_its_family(d):
    head = FactorizedHead(MIXED, 2)
    mixture = head(jnp.asarray(np.random.default_rng(2).normal(size=(3, head.num_outputs))))
    single = jaxmdn.marginal(mixture, (d,))
    alone = jaxmdn.Mixture(logits=mixture.logits, components=mixture.components.parts[d])
    assert jax.tree.structure(single) == jax.tree.structure(alone)
    if single.discrete:
        with pytest.raises(TypeError, match="modes: needs a density over real numbers, got a"):
            jaxmdn.modes(single)
    # A group of one, made by hand, gives what its part gives.
    parts = jaxmdn.components.Independent(parts=(alone.components,), dims=((0,),))
    group = jaxmdn.Mixture(logits=mixture.logits, components=parts)
    if not single.discrete:
        for found, exact in zip(
            (*jaxmdn.modes(group), *jaxmdn.hdr_intervals(group, 0.7)),
            (*jaxmdn.modes(alone), *jaxmdn.hdr_intervals(alone, 0.7)),
            strict=True,
        ):
            np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_modes_of_independent_densities_are_all_choices():
    head = IndependentHead(
        (jaxmdn.NormalHead(2), jaxmdn.NormalHead(2, 2), FactorizedHead("logistic", 2))
    )
    raw = 3 * np.random.default_rng(3).normal(size=(2, head.num_outputs))
    joint = head(jnp.asarray(raw))
    found = jaxmdn.modes(joint)
    parts = [jaxmdn.modes(part) for part in joint.parts]
    counts = [part.log_prob.shape[-1] for part in parts]
    assert found.location.shape == (2, np.prod(counts), 4)
    for row in range(2):
        expected = []
        for index in np.ndindex(*counts):
            heights = [part.log_prob[row, i] for part, i in zip(parts, index, strict=True)]
            if all(np.isfinite(heights)):
                place = [part.location[row, i] for part, i in zip(parts, index, strict=True)]
                expected.append((float(sum(heights)), np.concatenate(place)))
        expected.sort(key=lambda pair: -pair[0])
        used = np.isfinite(found.log_prob[row])
        assert used.sum() == len(expected) >= 2
        assert np.all(used[: len(expected)])
        for slot, (height, place) in enumerate(expected):
            assert float(found.log_prob[row, slot]) == pytest.approx(height, rel=1e-12)
            np.testing.assert_allclose(found.location[row, slot], place, rtol=1e-12)
    with pytest.raises(TypeError, match="modes: expected a Mixture, got Categorical"):
        jaxmdn.modes(IndependentHead((jaxmdn.NormalHead(2), jaxmdn.CategoricalHead(3)))(raw[:, :9]))


def test_merged_independent_densities_are_scored_and_classes_averaged():
    """Each output of a merged density is the merged output; a product's region is that of it."""
    head = IndependentHead((jaxmdn.NormalHead(2), jaxmdn.NormalHead(2)))
    raw = np.random.default_rng(3).normal(size=(2, 1, head.num_outputs))
    classes, logits = jaxmdn.CategoricalHead(3), np.random.default_rng(4).normal(size=(2, 5, 3))
    share, y = jnp.array([1.0, 3.0]), jnp.array([[0.3, -1.2], [4.0, 0.1]])
    key = jax.random.key(0)

    @jax.jit
    def ask(raw, logits):
        pair, guesses = [head(own) for own in raw], [classes(own) for own in logits]
        whole = jaxmdn.merge(pair, share)
        columns = [jaxmdn.merge([own.parts[d] for own in pair], share) for d in (0, 1)]
        scores = [
            (
                score(whole, y),
                jnp.concatenate([score(columns[d], y[:, d, None]) for d in (0, 1)], 1),
            )
            for score in (jaxmdn.crps, jaxmdn.scoring.quantile_crps)
        ]
        average = jaxmdn.merge(guesses, share).log_prob(jnp.ones((5, 1), int))
        level = jaxmdn.hdr_level(pair[0], y, key=key).value
        heights = pair[0].log_prob(pair[0].sample(jax.random.key(1), (10000,)))  # [S, 1]
        return scores, average, level, jnp.mean(heights >= pair[0].log_prob(y), axis=0)

    scores, average, level, found = ask(jnp.asarray(raw), jnp.asarray(logits))
    for whole, parts in scores:
        np.testing.assert_allclose(whole, parts, rtol=1e-12)
    probabilities = special.softmax(logits, axis=-1)[..., 1]
    np.testing.assert_allclose(np.exp(average), [0.25, 0.75] @ probabilities, rtol=1e-12)
    np.testing.assert_allclose(level, found, atol=0.02)
    with pytest.raises(ValueError, match=r"merge: every density must have the same classes"):
        jaxmdn.merge([classes(jnp.zeros(3)), jaxmdn.CategoricalHead(4)(jnp.zeros(4))])
