"""The contract of samples: right distribution, right row, right component, never a dead one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from head_cases import DISCRETE, D, K, every_density
from scipy import stats

import jaxmdn
from jaxmdn import components
from jaxmdn.components.categorical import draw_index

DRAWS = 4000


@functools.cache
def _draws(case):
    """Two rows whose components lie 40 apart and whose rows lie 1000 apart, and their samples."""
    head, rng = case.make(K, D), case.rng()
    where = oracles.layout(head)
    raw = 0.5 * rng.normal(size=(2, head.num_outputs))
    count = len(where["loc"]) // D
    raw[:, where["loc"]] += np.outer(40.0 * np.arange(count), [1, -1]).ravel()
    raw[1, where["loc"]] += 1000.0
    raw[1, where["logits"][1]] = -np.inf
    mixture = head(jnp.asarray(raw))
    samples, index = jaxmdn.sample(jax.random.key(7), mixture, (DRAWS,), return_index=True)
    return case.oracle(head, raw), mixture.num_components, np.asarray(samples), np.asarray(index)


@pytest.mark.optimised
@every_density
def test_samples_follow_the_cdf_of_their_own_row(case):
    dense, _, samples, _ = _draws(case)
    directions = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.6, 0.8])]
    for row in (0, 1):
        part = dense.row(row)
        for direction in directions:  # the third one sees the correlation
            scale = np.sqrt(np.einsum("i,kij,j->k", direction, part.covariances, direction))
            loc = part.loc @ direction

            def cdf(t, part=part, loc=loc, scale=scale):
                return stats.norm.cdf(t[:, None], loc, scale) @ part.weights

            assert stats.kstest(samples[:, row] @ direction, cdf).pvalue > 1e-4


@every_density
def test_samples_have_the_moments(case):
    dense, _, samples, _ = _draws(case)
    centred = samples - dense.mean()
    products = centred[..., :, None] * centred[..., None, :]  # [S, 2, D, D]
    for draws, expected in ((centred, 0.0), (products, dense.covariance())):
        error = np.std(draws, axis=0) / np.sqrt(DRAWS)
        assert np.all(np.abs(np.mean(draws, axis=0) - expected) < 5 * error)


@every_density
def test_index_names_the_component_that_made_the_value(case):
    dense, count, samples, index = _draws(case)
    assert index.shape == (DRAWS, 2)
    assert index.dtype == np.int32
    distance = np.linalg.norm(samples[..., None, :] - dense.loc, axis=-1)
    each = dense.loc.shape[-2] // count  # components per index: K for a class
    np.testing.assert_array_equal(np.argmin(distance, axis=-1) // each, index)
    for row in (0, 1):
        weights = dense.weights[row].reshape(count, each).sum(-1)
        drawn = np.bincount(index[:, row], minlength=count)
        assert not np.any(drawn[weights == 0])
        alive = weights > 0
        if np.sum(alive) > 1:
            assert stats.chisquare(drawn[alive], DRAWS * weights[alive]).pvalue > 1e-4


@pytest.mark.parametrize("case", DISCRETE, ids=lambda case: case.name)
def test_classes_are_drawn_by_their_probabilities(case):
    head = case.make(K, 1)
    raw = case.rng().normal(size=(2, head.num_outputs))
    raw[1, 2] = -np.inf
    labels = np.asarray(jaxmdn.sample(jax.random.key(3), head(jnp.asarray(raw)), (DRAWS,)))
    assert labels.shape == (DRAWS, 2, 1)
    weights = case.oracle(head, raw).weights
    for row in (0, 1):
        drawn = np.bincount(labels[:, row, 0], minlength=head.num_classes)
        alive = weights[row] > 0
        assert not np.any(drawn[~alive])
        assert stats.chisquare(drawn[alive], DRAWS * weights[row][alive]).pvalue > 1e-4


with np.errstate(divide="ignore"):
    LOGITS = np.log([[0.0, 0.25, 0.0, 0.75, 0.0], [0.5, 0.0, 0.5, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("uniform", "expected"),
    [(0.0, [1, 0]), (0.25, [3, 0]), (0.5, [3, 2]), (1 - 2**-24, [3, 2])],
)
def test_uniform_numbers_at_the_steps_draw_living_categories(uniform, expected, monkeypatch):
    def fixed(key, shape, dtype):
        return jnp.full(shape, uniform, dtype)

    monkeypatch.setattr(jax.random, "uniform", fixed)
    index = draw_index(jax.random.key(0), jnp.asarray(LOGITS, jnp.float32), (2,))
    np.testing.assert_array_equal(index, expected)


@pytest.mark.parametrize("drift", [1e-6, -1e-6])
def test_rounding_of_the_cumulated_weights_revives_nothing(drift, monkeypatch):
    # The order in which a backend adds is its own affair; make its error visible.
    exact, error = jnp.cumsum, drift * np.arange(5, dtype=np.float32)
    monkeypatch.setattr(jnp, "cumsum", lambda a, axis: exact(a, axis) + jnp.asarray(error))
    near_steps = np.array([0.25, 0.5])[:, None] + np.linspace(-1e-5, 1e-5, 2001)
    near_one = 1 - 2.0 ** -np.arange(1, 25)
    uniform = np.concatenate([[0.0], near_steps.ravel(), near_one]).astype(np.float32)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.asarray(uniform))
    for row, living in zip(LOGITS, ({1, 3}, {0, 2}), strict=True):
        index = draw_index(jax.random.key(0), jnp.asarray(row, jnp.float32), uniform.shape)
        assert set(np.unique(index).tolist()) == living


def test_no_living_category_draws_index_zero():
    index = draw_index(jax.random.key(0), jnp.full((3,), -jnp.inf), (100,))
    assert set(np.unique(index).tolist()) == {0}


def test_samples_are_differentiable_in_the_component_drawn():
    logits = jnp.zeros(2)
    noise_free = jnp.asarray([[1.0], [100.0]])

    def draw(loc, scale):
        normal = jaxmdn.components.Normal(loc=loc, scale=scale)
        mixture = jaxmdn.Mixture(logits=logits, components=normal)
        return jaxmdn.sample(jax.random.key(5), mixture, (6,), return_index=True)

    scale = jnp.full((2, 1), 2.0)
    values, index = draw(noise_free, scale)
    slopes = jax.jit(jax.jacobian(lambda *p: draw(*p)[0][:, 0], argnums=(0, 1)))
    slope_loc, slope_scale = map(np.asarray, slopes(noise_free, scale))
    chosen = np.eye(2)[np.asarray(index)]  # [S, K]
    noise = (np.asarray(values)[:, 0] - np.asarray(noise_free)[np.asarray(index), 0]) / 2.0
    np.testing.assert_allclose(slope_loc[..., 0], chosen, rtol=1e-12)
    np.testing.assert_allclose(slope_scale[..., 0], chosen * noise[:, None], rtol=1e-12)


def test_keys_decide():
    normal = jaxmdn.components.Normal(loc=jnp.zeros((2, 1)), scale=jnp.ones((2, 1)))
    mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)
    first, again, other = (jaxmdn.sample(jax.random.key(seed), mixture, (9,)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


def test_sample_shapes_as_users_write_them(user_errors):
    mixture = jaxmdn.NormalHead(2, 3)(jnp.zeros((4, 14)))
    key = jax.random.key(0)
    for shape, expected in ((7, (7, 4, 3)), ([2, 5], (2, 5, 4, 3)), ((), (4, 3)), (0, (0, 4, 3))):
        assert jaxmdn.sample(key, mixture, shape).shape == expected
    with pytest.raises(ValueError, match="shape must be at least 0, got -1"):
        jaxmdn.sample(key, mixture, (-1,))
    with pytest.raises(TypeError, match=r"the order is sample\(key, mixture, shape\)"):
        jaxmdn.sample(mixture, key)
    with pytest.raises(TypeError, match="expected a density"):
        jaxmdn.log_prob(jnp.zeros((4, 14)), jnp.zeros((4, 3)))


def _members(dtype):
    """A member of every family that makes its own noise, from numbers that any dtype holds."""

    def array(values):
        return jnp.asarray(np.asarray(values, jnp.dtype(dtype)))

    half, one, two = (array([[value]]) for value in (0.5, 1.0, 2.0))
    pair, square = array([[1.0, -2.0]]), array([[[2.0, 0.0], [-1.0, 0.5]]])
    loading, widths = array([[[2.0], [-1.0]]]), array([[1.0, 0.5]])
    gamma = components.Gamma(concentration=two, rate=half)
    return {
        "normal": components.Normal(loc=one, scale=half),
        "laplace": components.Laplace(loc=one, scale=half),
        "logistic": components.Logistic(loc=one, scale=half),
        "student_t": components.StudentT(loc=one, scale=half, df=two),
        "asymmetric_laplace": components.AsymmetricLaplace(loc=one, scale=half, asymmetry=two),
        "log_normal": components.LogNormal(loc=one, scale=half),
        "logit_normal": components.LogitNormal(loc=one, scale=half, lower=0.0, upper=1.0),
        "truncated_normal": components.TruncatedNormal(
            loc=one, scale=half, lower=-np.inf, upper=2.0
        ),
        "weibull": components.Weibull(concentration=half, scale=two),
        "gamma": gamma,
        "beta": components.Beta(concentration1=half, concentration0=two, lower=0.0, upper=1.0),
        "von_mises": components.VonMises(loc=one, concentration=two),
        "hurdle": components.Hurdle(base=gamma, logit=half),
        "full": components.FullNormal(loc=pair, whitening_tril=square),
        "low_rank": components.LowRankNormal(loc=pair, factor=loading, scale=widths),
    }


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.nightly)])
def test_no_noise_is_made_in_half_precision(dtype):
    """In bfloat16 it has 128 values: the variance of a logistic's draws was 63 (3.3)."""
    widths = set()
    for name, family in _members(dtype).items():
        program = jax.make_jaxpr(lambda key, own: own.sample(key, (3,)))(jax.random.key(0), family)
        assert program.out_avals[0].dtype == dtype, name
        widths |= {(int(bits), name) for bits in re.findall(r"bit_width=(\d+)", str(program))}
    assert {bits for bits, _ in widths} == {32}, widths


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_draws_in_half_precision_are_those_of_float32_rounded_once(dtype):
    @jax.jit
    def draw(members):
        return {n: family.sample(jax.random.key(3), (200,)) for n, family in members.items()}

    found, exact = draw(_members(dtype)), draw(_members("float32"))
    for name, draws in found.items():
        assert draws.dtype == dtype
        np.testing.assert_array_equal(draws, exact[name].astype(dtype), err_msg=name)


def test_the_rarest_uniform_number_stands_for_no_more_than_itself(monkeypatch):
    """Zero, one draw in 2^23, was moved to 1e-38: 87 scales below a logistic's centre."""
    monkeypatch.setattr(
        jax.random, "uniform", lambda key, shape, dtype, minval=0.0: jnp.full(shape, minval, dtype)
    )
    names = ("logistic", "truncated_normal", "weibull")
    families = {n: family for n, family in _members("float32").items() if n in names}

    @jax.jit
    def tails(families):
        draws = {n: family.sample(jax.random.key(0)) for n, family in families.items()}
        return {
            n: jnp.minimum(families[n].cdf(y), families[n].survival(y)) for n, y in draws.items()
        }

    for name, tail in tails(families).items():
        np.testing.assert_allclose(tail, 2.0**-24, rtol=1e-3, err_msg=name)
