"""distrax both ways: the same density on either side, and life without distrax."""

import subprocess
import sys
from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

import jaxmdn
from jaxmdn import components
from jaxmdn.components import Categorical, FullNormal, Normal
from jaxmdn.heads import Family

pytestmark = pytest.mark.version

D = 2
RNG = np.random.default_rng(0)
Y = jnp.asarray(RNG.normal(size=(5, D)))
LOC = jnp.asarray(RNG.normal(size=(3, D)))
SCALE = jnp.asarray([[0.5, 1.5], [1.0, 0.2], [2.0, 1.0]])
TRIL = jnp.asarray([[0.8, 0.0], [-0.6, 1.2]])
FACTOR = jnp.asarray([[0.5], [-1.0]])
HEADS = {
    "isotropic": jaxmdn.NormalHead(3, D, covariance="isotropic", tied=True),
    "diagonal": jaxmdn.NormalHead(3, D, covariance="diagonal"),
    "full": jaxmdn.NormalHead(3, D, covariance="full"),
    "low_rank": jaxmdn.NormalHead(3, D, covariance="low_rank", tied=True),
}


def mixture_of(head, batch=(), dtype=jnp.float64):
    return head(oracles.random_raw(RNG, head, batch, dtype))


def summary(density, y):
    return density.log_prob(y), density.mean(), density.variance()


@partial(jax.jit, static_argnames="convert")
def summaries(source, y, convert):
    """Log-density, mean and variance of a density and of what it is converted to (and back)."""
    result = [source]
    for function in convert:
        result.append(function(result[-1]))
    return [summary(density, y) for density in result]


def check_same(source, y, *convert):
    first, *others = summaries(source, y, convert)
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_there_and_back(name):
    mixture = mixture_of(HEADS[name], batch=(5,))
    check_same(mixture, Y, jaxmdn.to_distrax, jaxmdn.from_distrax)
    distribution = jax.eval_shape(jaxmdn.to_distrax, mixture)
    assert isinstance(distribution, distrax.MixtureSameFamily)
    assert distribution.batch_shape == (5,)
    assert distribution.event_shape == (D,)


FAMILIES = {
    "isotropic": distrax.MultivariateNormalDiag,
    "diagonal": distrax.MultivariateNormalDiag,
    "full": distrax.MultivariateNormalTri,
    "low_rank": distrax.MultivariateNormalFullCovariance,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_component_families_alone(name):
    mixture = mixture_of(HEADS[name])
    distribution = jaxmdn.to_distrax(mixture.components)
    assert isinstance(distribution, FAMILIES[name])
    theirs = distribution.covariance()
    expected = oracles.of_mixture(mixture).covariances
    np.testing.assert_allclose(np.broadcast_to(theirs, expected.shape), expected, rtol=1e-10)


def test_parameters_with_fewer_leading_axes():
    """Weights for every row, one set of components: distrax has no broadcasting, jaxmdn has."""
    mixture = jaxmdn.Mixture(
        logits=jnp.asarray(RNG.normal(size=(5, 3))), components=Normal(loc=LOC, scale=SCALE)
    )
    check_same(mixture, Y, jaxmdn.to_distrax)


def test_half_precision_goes_out_as_float32():
    for name in ("diagonal", "low_rank"):
        mixture = mixture_of(HEADS[name], dtype=jnp.bfloat16)
        y = Y.astype(jnp.float32)
        theirs = jax.jit(lambda mixture, y: jaxmdn.to_distrax(mixture).log_prob(y))(mixture, y)
        assert theirs.dtype == jnp.float32
        np.testing.assert_allclose(theirs, oracles.of_mixture(mixture).log_prob(Y), rtol=1e-4)


def test_class_conditional_densities_nest():
    head = jaxmdn.ClassConditionalHead(2, HEADS["diagonal"])
    density = mixture_of(head)
    check_same(density, Y, jaxmdn.to_distrax, jaxmdn.from_distrax)
    distribution = jax.eval_shape(jaxmdn.to_distrax, density)
    assert isinstance(distribution.components_distribution, distrax.MixtureSameFamily)


def test_categorical_loses_and_regains_its_event_axis():
    density = Categorical(logits=jnp.asarray(RNG.normal(size=(3, 4))))
    labels = jnp.asarray([0, 3, 1])
    distribution = jaxmdn.to_distrax(density)
    ours = jaxmdn.log_prob(density, labels[:, None])
    np.testing.assert_allclose(distribution.log_prob(labels), ours, rtol=1e-12)
    probs = jnp.asarray([[0.2, 0.5, 0.3]])
    back = jaxmdn.from_distrax(distrax.Categorical(probs=probs))
    np.testing.assert_allclose(jnp.exp(back.log_prob(jnp.asarray([[2]]))), [0.3], rtol=1e-12)


DISTRIBUTIONS = {
    "diag": (distrax.MultivariateNormalDiag(LOC, SCALE), Normal),
    "diag without loc": (distrax.MultivariateNormalDiag(scale_diag=SCALE), Normal),
    "diag, a negative scale": (distrax.MultivariateNormalDiag(LOC, -SCALE), Normal),
    "lower": (distrax.MultivariateNormalTri(LOC, TRIL), FullNormal),
    "lower, a negative diagonal": (distrax.MultivariateNormalTri(LOC, -TRIL), FullNormal),
    "upper": (distrax.MultivariateNormalTri(LOC, TRIL.T, is_lower=False), FullNormal),
    "full": (distrax.MultivariateNormalFullCovariance(LOC, TRIL @ TRIL.T), FullNormal),
    "low rank": (
        distrax.MultivariateNormalDiagPlusLowRank(LOC, SCALE, FACTOR * jnp.ones((3, 1, 1))),
        FullNormal,
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_from_multivariate_normals(name):
    distribution, family = DISTRIBUTIONS[name]
    assert type(jax.eval_shape(jaxmdn.from_distrax, distribution)) is family
    mixture = distrax.MixtureSameFamily(
        distrax.Categorical(probs=jnp.asarray([0.2, 0.5, 0.3])), distribution
    )
    check_same(mixture, Y, jaxmdn.from_distrax)


def test_from_univariate_normals_adds_an_event_axis():
    distribution = distrax.Normal(LOC[:, 0], jnp.asarray(2.0))
    density = jaxmdn.from_distrax(distribution)
    y = Y[:3, :1]
    np.testing.assert_allclose(
        jaxmdn.log_prob(density, y), distribution.log_prob(y[:, 0]), rtol=1e-12
    )
    mixture = distrax.MixtureSameFamily(distrax.Categorical(logits=jnp.zeros(3)), distribution)
    density = np.mean(stats.norm.pdf(Y[:, :1], np.asarray(LOC[:, 0]), 2.0), axis=-1)
    ours = jaxmdn.log_prob(jaxmdn.from_distrax(mixture), Y[:, :1])
    np.testing.assert_allclose(ours, np.log(density), rtol=1e-12)


REAL, POSITIVE, UNIT = (lambda u: 4 * u - 2), (lambda u: 0.05 + 4 * u), (lambda u: u)
NONE, MEAN, BOTH = (), ("mean",), ("mean", "variance")
BOUNDS = {"lower": -1.0, "upper": 3.0}
# Targets from uniform numbers in (0.02, 0.98), and the moments distrax has of the same meaning.
OTHERS = {
    "laplace": ("laplace", REAL, BOTH),
    "logistic": ("logistic", REAL, BOTH),
    "lognormal": ("lognormal", POSITIVE, NONE),
    "gamma": ("gamma", POSITIVE, BOTH),
    "beta": ("beta", UNIT, BOTH),
    "beta, bounds": (Family("beta", **BOUNDS), lambda u: 4 * u - 1, MEAN),
    "logit_normal": ("logit_normal", UNIT, NONE),
    "logit_normal, bounds": (Family("logit_normal", **BOUNDS), lambda u: 4 * u - 1, NONE),
    "von_mises": ("von_mises", lambda u: np.pi * (2 * u - 1), NONE),
    "bernoulli": ("bernoulli", np.round, BOTH),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_families_there_and_back(name, dtype):
    family, targets, moments = OTHERS[name]
    mixture = mixture_of(jaxmdn.FactorizedHead((family,) * D, 3), (50,), dtype)
    y = jnp.asarray(targets(RNG.uniform(0.02, 0.98, (50, D))), dtype)

    @jax.jit
    def both(mixture, y):
        distribution = jaxmdn.to_distrax(mixture)
        ours = [mixture.log_prob(y), *(getattr(mixture, moment)() for moment in moments)]
        theirs = [distribution.log_prob(y), *(getattr(distribution, it)() for it in moments)]
        slope = jax.grad(lambda y: jnp.sum(mixture.log_prob(y)))(y)
        return ours, theirs, jaxmdn.from_distrax(distribution), jnp.sum(jnp.abs(slope * y), -1)

    ours, theirs, back, condition = both(mixture, y)
    # The terms of a log-density (a log y, log Gamma(a), ...) reach 30 here and cancel: distrax adds
    # them up one by one, which costs it some ten roundings of their size; and what it makes of y
    # (its logit, say) is rounded, which a narrow density multiplies.
    tolerance = 100 * float(jnp.finfo(dtype).eps)
    rooms = (tolerance * (1 + np.asarray(condition, np.float64)), *(tolerance,) * len(moments))
    for mine, its, room in zip(ours, theirs, rooms, strict=True):
        assert its.dtype == dtype
        mine, its = np.asarray(mine, np.float64), np.asarray(its, np.float64)
        assert np.all(np.abs(its - mine) <= room * (1 + np.abs(mine)))
    assert jax.tree.structure(back) == jax.tree.structure(mixture)  # families and bounds
    assert_same_components(back, mixture)


def assert_same_components(mine, theirs):
    """Parameters bit for bit, shared ones written out; of the weights only the softmax counts."""
    np.testing.assert_allclose(mine.weights(), theirs.weights(), rtol=1e-5)
    pairs = zip(*map(jax.tree.leaves, (mine.components, theirs.components)), strict=True)
    for left, right in pairs:
        np.testing.assert_array_equal(left, np.broadcast_to(right, left.shape))


@pytest.mark.parametrize("family", [jaxmdn.components.Laplace, jaxmdn.components.Logistic])
def test_parameters_that_dimensions_share(family):
    components = family(loc=LOC, scale=SCALE[:, :1])
    distribution = jaxmdn.to_distrax(components)
    assert isinstance(distribution, distrax.Independent)
    assert distribution.batch_shape == (3,)
    assert distribution.event_shape == (D,)
    back = jaxmdn.from_distrax(distribution)
    np.testing.assert_array_equal(back.scale, jnp.broadcast_to(SCALE[:, :1], (3, D)))
    np.testing.assert_allclose(back.log_prob(Y[:3]), components.log_prob(Y[:3]), rtol=1e-12)


def test_classes_of_another_family_nest():
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.FactorizedHead(("gamma", "beta"), 3))
    with pytest.raises(TypeError, match="distrax has no counterpart of Independent"):
        jaxmdn.to_distrax(mixture_of(head))
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.FactorizedHead(("laplace",) * D, 3))
    check_same(mixture_of(head, (5,)), Y, jaxmdn.to_distrax, jaxmdn.from_distrax)


def test_a_von_mises_has_two_kinds_of_moments():
    """distrax's are the circular ones, jaxmdn's those of the angle as a real number."""
    angle = jaxmdn.components.VonMises(loc=LOC, concentration=SCALE)
    distribution = jaxmdn.to_distrax(angle)
    np.testing.assert_allclose(distribution.mean(), angle.circular_mean(), rtol=1e-12)
    np.testing.assert_allclose(distribution.variance(), angle.circular_variance(), rtol=1e-9)


def test_univariate_distributions_of_distrax_own_making():
    """Scalars, parameters that broadcast, other spellings of the same map."""
    scale, y = jnp.asarray(2.0), jnp.asarray([0.3, 0.5, 0.9])
    normal = distrax.Normal(LOC[:, 0], scale)
    for distribution, expected in [
        (distrax.LogStddevNormal(LOC[:, 0], jnp.log(scale)), stats.norm(LOC[:, 0], 2.0)),
        (distrax.Laplace(LOC[:, 0], scale), stats.laplace(LOC[:, 0], 2.0)),
        (distrax.Transformed(normal, jnp.exp), stats.lognorm(2.0, scale=np.exp(LOC[:, 0]))),
        (
            distrax.Transformed(normal, distrax.Lambda(lambda x: jnp.exp(x))),
            stats.lognorm(2.0, scale=np.exp(LOC[:, 0])),
        ),
        (
            distrax.Transformed(distrax.Beta(scale, jnp.ones(3)), distrax.ScalarAffine(0.0, 3.0)),
            stats.beta(2.0, 1.0, scale=3.0),
        ),
        (distrax.Bernoulli(probs=jnp.asarray([0.2, 0.5, 0.7])), None),
    ]:
        density = jaxmdn.from_distrax(distribution)
        assert (density.batch_shape, density.event_dim) == ((3,), 1)
        if expected is not None:
            ours = density.log_prob(y[:, None])
            np.testing.assert_allclose(ours, expected.logpdf(y), rtol=1e-6)
    np.testing.assert_allclose(density.mean()[:, 0], [0.2, 0.5, 0.7], rtol=1e-12)


def test_unsupported_distributions_raise(user_errors):
    gumbel = distrax.Gumbel(LOC[:, 0], SCALE[:, 0])
    with pytest.raises(TypeError, match="no jaxmdn family for Gumbel; supported are Normal, Lapl"):
        jaxmdn.from_distrax(gumbel)
    weights = distrax.Categorical(logits=jnp.zeros(3))
    with pytest.raises(TypeError, match="no jaxmdn family for Gumbel"):
        jaxmdn.from_distrax(distrax.MixtureSameFamily(weights, gumbel))
    for mapped in (
        distrax.Transformed(distrax.Laplace(LOC, SCALE), jnp.exp),
        distrax.Transformed(distrax.Normal(LOC, SCALE), distrax.ScalarAffine(0.0, 2.0)),
        distrax.Transformed(distrax.MultivariateNormalDiag(LOC, SCALE), distrax.Block(jnp.exp, 1)),
    ):
        with pytest.raises(TypeError, match="no jaxmdn family for Transformed; supported"):
            jaxmdn.from_distrax(mapped)
    pair = distrax.Independent(distrax.Laplace(LOC, SCALE), reinterpreted_batch_ndims=2)
    with pytest.raises(TypeError, match=r"no jaxmdn family for Independent; .*over one axis"):
        jaxmdn.from_distrax(pair)
    shifts = distrax.ScalarAffine(jnp.zeros(3), 2.0)
    with pytest.raises(TypeError, match="bounds of Beta are static, so its ScalarAffine must have"):
        jaxmdn.from_distrax(distrax.Transformed(distrax.Beta(SCALE[:, 0], SCALE[:, 1]), shifts))
    turned = distrax.ScalarAffine(1.0, -1.0)
    with pytest.raises(ValueError, match=r"lower must be below upper, got 1\.0 and 0\.0"):
        jaxmdn.from_distrax(distrax.Transformed(distrax.Beta(SCALE[:, 0], SCALE[:, 1]), turned))


@components.family
class SomeoneElses(components.Univariate):
    loc: jax.Array = components.real()


@pytest.mark.parametrize("family", ["student_t", "weibull", "poisson", "truncated_normal"])
def test_families_that_distrax_has_not_raise(family, user_errors):
    mixture = mixture_of(jaxmdn.FactorizedHead(family, 2))
    name = type(mixture.components).__name__
    with pytest.raises(TypeError, match=f"to_distrax: distrax has no counterpart of {name}"):
        jaxmdn.to_distrax(mixture)
    with pytest.raises(TypeError, match="to_distrax: distrax has no counterpart of SomeoneElses"):
        jaxmdn.to_distrax(SomeoneElses(loc=LOC))


WITHOUT_DISTRAX = """
import sys
{prepare}
import jax.numpy as jnp
import jaxmdn
mixture = jaxmdn.NormalHead(1, 1)(jnp.zeros(3))
print("log_prob", float(jaxmdn.log_prob(mixture, jnp.zeros(1))))
for name in ("to_distrax", "from_distrax"):
    try:
        getattr(jaxmdn.interop, name)
    except ImportError as error:
        print(error)
"""


@pytest.mark.parametrize("state", ["absent", "broken"])
def test_everything_else_works_without_distrax(state, tmp_path):
    if state == "absent":
        prepare = "sys.modules['distrax'] = None"  # how Python spells a module that is not there
    else:
        (tmp_path / "distrax.py").write_text("raise RuntimeError('no such symbol')")
        prepare = f"sys.path.insert(0, {str(tmp_path)!r})"
    code = WITHOUT_DISTRAX.format(prepare=prepare)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    value, *errors = run.stdout.splitlines()
    # scale = 1e-3 + log 2 at a raw output of zero
    expected = -np.log(1e-3 + np.log(2.0)) - 0.5 * np.log(2.0 * np.pi)
    np.testing.assert_allclose(float(value.split()[1]), expected, rtol=1e-5)
    assert len(errors) == 2
    for error in errors:
        assert "jaxmdn.interop needs a working distrax, but importing it failed" in error
        assert "pip install 'distrax>=0.1.9'" in error
        assert ("no such symbol" in error) == (state == "broken")
