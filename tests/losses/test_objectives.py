"""Objectives against formulas in NumPy; the Fisher information by dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import jaxmdn
from jaxmdn import losses

RNG = np.random.default_rng(0)
N, K = 5, 3


def gradient(loss):
    return jax.jit(jax.grad(loss))


def value_and_gradient(loss):
    return jax.jit(jax.value_and_grad(loss))


def normal_case(dim=1, **options):
    head = jaxmdn.NormalHead(K, dim, **options)
    raw = jnp.asarray(RNG.normal(size=(N, head.num_outputs)))
    return head, raw, jnp.asarray(RNG.normal(size=(N, dim)))


def parts_of(head, raw):
    mixture = head(raw)
    components = mixture.components
    return (
        np.asarray(mixture.weights()),
        np.asarray(components.loc),
        np.broadcast_to(components.scale, components.loc.shape),
    )


# Beta-NLL


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_nll_gradient_is_its_formula(beta):
    """Locations: ``-r s^(2 beta - 2) (y - loc)``; scales: ``-r s^(2 beta) (z^2 - 1) / s``.

    Logits as the likelihood's. By hand, through the exponential link.
    """
    head, raw, y = normal_case(2, scale_link="exp", min_scale=0.0)
    weights, loc, scale = parts_of(head, raw)
    z = (np.asarray(y)[:, None] - loc) / scale
    joint = np.log(weights) + stats.norm.logpdf(z).sum(-1) - np.log(scale).sum(-1)
    share = special.softmax(joint, axis=-1)
    by_loc = -share[..., None] * scale ** (2 * beta - 1) * z
    by_raw_scale = -share[..., None] * scale ** (2 * beta) * (z**2 - 1)
    expected = np.concatenate(
        [weights - share, by_loc.reshape(N, -1), by_raw_scale.reshape(N, -1)], axis=1
    )
    loss = lambda raw: losses.beta_nll(head, raw, y, beta=beta, reduction="sum")  # noqa: E731
    np.testing.assert_allclose(gradient(loss)(raw), expected, rtol=1e-10, atol=1e-12)


def test_beta_nll_of_zero_has_the_gradient_of_nll():
    head = jaxmdn.FactorizedHead(("student_t", "laplace"), K)
    raw = jnp.asarray(RNG.normal(size=(N, head.num_outputs)))
    y = jnp.asarray(RNG.normal(size=(N, 2)))
    own = gradient(lambda raw: losses.beta_nll(head, raw, y, beta=0.0))(raw)
    np.testing.assert_allclose(own, gradient(lambda r: jaxmdn.nll(head, r, y))(raw), rtol=1e-9)


# Winner takes all


@pytest.mark.parametrize("winners", [1, 2, K])
def test_winners_alone_learn(winners):
    head, raw, y = normal_case(2)
    weights, loc, scale = parts_of(head, raw)
    each = stats.norm.logpdf(np.asarray(y)[:, None], loc, scale).sum(-1)
    order = np.argsort(-each, axis=1)[:, :winners]
    best, own = (np.take_along_axis(values, order, 1) for values in (each, weights))
    expected = -np.log(own.sum(1)) - best.mean(1)
    found = losses.winner_takes_all(head, raw, y, num_winners=winners, reduction="none")
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    slope = gradient(lambda r: losses.winner_takes_all(head, r, y, num_winners=winners))(raw)
    by_loc = np.asarray(slope)[:, K : 3 * K].reshape(N, K, 2)
    moved = (by_loc != 0).all(-1)
    assert (np.sort(np.argwhere(moved)[:, 1].reshape(N, winners)) == np.sort(order)).all()
    with pytest.raises(ValueError, match="num_winners must be at most K = 3, got 4"):
        losses.winner_takes_all(head, raw, y, num_winners=4)


@pytest.mark.parametrize("winners", [1, 2])
def test_the_winners_gradient_is_its_formula(winners):
    """Logits: ``w - w_k / sum of winners``; the winners' locations and log-scales: their scores."""
    head, raw, y = normal_case(2, scale_link="exp", min_scale=0.0)
    weights, loc, scale = parts_of(head, raw)
    z = (np.asarray(y)[:, None] - loc) / scale
    each = (stats.norm.logpdf(z) - np.log(scale)).sum(-1)
    won = each >= np.sort(each, axis=1)[:, -winners, None]
    by_logits = weights - won * weights / (won * weights).sum(1, keepdims=True)
    share = (won / winners)[..., None]
    by_loc, by_scale = -share * z / scale, -share * (z**2 - 1)
    expected = np.concatenate([by_logits, by_loc.reshape(N, -1), by_scale.reshape(N, -1)], axis=1)
    found = gradient(
        lambda r: losses.winner_takes_all(head, r, y, num_winners=winners, reduction="sum")
    )(raw)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


# Cells


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_cells_of_normals(dtype):
    """Cells from far narrower to far wider than the scale, from the centre to 30 scales away."""
    mpmath = pytest.importorskip("mpmath")
    head = jaxmdn.NormalHead(1, 1, scale_link="exp", min_scale=0.0)
    widths, places = np.array([1e-6, 1e-3, 0.02, 0.5, 3.0, 40.0]), np.array([0.0, 0.7, -3, 9, -30])
    y, width = (part.reshape(-1, 1) for part in np.meshgrid(places, widths))
    with mpmath.workdps(60):

        def exact(y, width):
            low, high = (
                (mpmath.mpf(y) + s * mpmath.mpf(width) / 2) / mpmath.sqrt(2) for s in (-1, 1)
            )
            if y > 0:
                low, high = -high, -low
            return float(-mpmath.log((mpmath.erfc(-high) - mpmath.erfc(-low)) / 2))

        expected = [exact(float(a), float(b)) for a, b in zip(y[:, 0], width[:, 0], strict=True)]
    raw = jnp.zeros((len(y), 3), dtype)
    found = losses.cell_nll(
        head, raw, jnp.asarray(y, dtype), jnp.asarray(width, dtype), reduction="none"
    )
    assert found.dtype == dtype
    rtol = 2e-5 if dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)
    # Gradients in location and log-scale: differences of the density at the ends over the mass.
    with mpmath.workdps(60):

        def slopes(y, width):
            low, high = (mpmath.mpf(y) + s * mpmath.mpf(width) / 2 for s in (-1, 1))
            ends = [mpmath.npdf(end) for end in (low, high)]
            mass = mpmath.exp(-mpmath.mpf(exact(y, width)))
            if width < 1e-2:  # to all digits, the integral over the cell
                mass = mpmath.quad(mpmath.npdf, [low, high])
            return float((ends[1] - ends[0]) / mass), float((high * ends[1] - low * ends[0]) / mass)

        wanted = [slopes(float(a), float(b)) for a, b in zip(y[:, 0], width[:, 0], strict=True)]
    slope = gradient(
        lambda raw: losses.cell_nll(
            head, raw, jnp.asarray(y, dtype), jnp.asarray(width, dtype), reduction="sum"
        )
    )(raw)
    unit = 1 + np.abs(y)  # a rounding of y is one of z in the score
    rtol = 1e-3 if dtype == jnp.float32 else 1e-7
    np.testing.assert_allclose(
        np.asarray(slope, float)[:, 1:] / unit, np.array(wanted) / unit, rtol=rtol, atol=rtol
    )


def test_cells_of_a_mixture_of_families_add_up_to_one():
    head = jaxmdn.FactorizedHead(("student_t", "gamma"), 2)
    raw = jnp.asarray(RNG.normal(size=head.num_outputs))
    grid = np.arange(0.0, 60.0)
    y = np.stack(np.meshgrid(grid - 29.5, grid + 0.5), axis=-1).reshape(-1, 2)
    cells = losses.cell_nll(head, raw, jnp.asarray(y), 1.0, reduction="none")
    mixture = head(raw)
    weights = np.asarray(mixture.weights())
    student, gamma = mixture.components.parts
    mass = np.ones_like(weights)
    for part, low, high in ((student, -30.0, 30.0), (gamma, 0.0, 60.0)):
        ends = [np.asarray(part.cdf(jnp.full((1, 1), end))[:, 0]) for end in (low, high)]
        mass = mass * (ends[1] - ends[0])
    np.testing.assert_allclose(np.exp(-np.asarray(cells)).sum(), weights @ mass, rtol=1e-9)


# Penalties


def test_penalties_are_log_densities_of_priors():
    head, raw, _ = normal_case(2)
    weights, _, scale = parts_of(head, raw)
    found = losses.dirichlet_penalty(head, raw, concentration=3.0)
    expected = [-stats.dirichlet.logpdf(w / w.sum(), np.full(K, 3.0)) for w in weights]
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-9)
    found = losses.scale_penalty(head, raw, shape=2.0, rate=0.3)
    expected = -stats.invgamma.logpdf(scale**2, 2.0, scale=0.3).sum((1, 2))
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-9)


def test_penalties_have_the_gradients_of_their_formulas():
    head, raw, _ = normal_case(2, scale_link="exp", min_scale=0.0)
    weights, _, scale = parts_of(head, raw)
    found = gradient(lambda r: losses.dirichlet_penalty(head, r, concentration=3.0).sum())(raw)
    np.testing.assert_allclose(found[:, :K], -2.0 * (1 - K * weights), rtol=1e-10)
    found = gradient(lambda r: losses.scale_penalty(head, r, shape=2.0, rate=0.3).sum())(raw)
    expected = (6.0 - 0.6 / scale**2).reshape(N, -1)
    np.testing.assert_allclose(found[:, -2 * K :], expected, rtol=1e-10)


def test_entropy_by_its_gradient():
    """``w_j (log w_j + H)`` in NumPy; a weight that underflows counts zero."""
    head, raw, _ = normal_case(1)
    raw = raw.at[0, 0].set(-1e4)
    log_weights = np.asarray(special.log_softmax(np.asarray(raw[:, :K], float), axis=1))
    weights = np.exp(log_weights)
    entropy = -np.sum(special.xlogy(weights, weights), axis=1)
    np.testing.assert_allclose(losses.entropy_penalty(head, raw), -entropy, rtol=1e-9)
    found = gradient(lambda r: losses.entropy_penalty(head, r).sum())(raw)
    expected = weights * (log_weights + entropy[:, None])
    np.testing.assert_allclose(found[:, :K], expected, rtol=1e-8, atol=1e-12)
    assert (np.asarray(found[:, K:]) == 0).all()


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_smoothed_labels_by_their_gradient(floor):
    """``p - (1 - s) onehot - s / C`` in the logits of the probabilities; rows left out, none."""
    head = jaxmdn.CategoricalHead(4, min_weight=floor)
    raw = jnp.asarray(RNG.normal(size=(5, 4)))
    y, mask = jnp.asarray([[0], [3], [1], [3], [9]]), jnp.asarray([True] * 4 + [False])
    own = np.asarray(special.softmax(np.asarray(raw, float), axis=1))
    p = floor + (1 - 4 * floor) * own
    target = 0.8 * np.eye(4)[np.asarray(y[:4, 0])] + 0.05
    loss = lambda r: losses.smoothed_nll(head, r, y, smoothing=0.2, mask=mask, reduction="sum")  # noqa: E731
    value, found = value_and_gradient(loss)(raw)
    np.testing.assert_allclose(value, -np.sum(target * np.log(p[:4])), rtol=1e-10)
    by_p = -(1 - 4 * floor) * target / p[:4]
    expected = own[:4] * (by_p - np.sum(by_p * own[:4], axis=1, keepdims=True))
    np.testing.assert_allclose(found[:4], expected, rtol=1e-9, atol=1e-12)
    assert (np.asarray(found[4]) == 0).all()


# Natural-gradient EM


def divergence(head, raw, other, k):
    """KL of component k between two sets of raw outputs, by dense algebra."""
    first, second = (head.build(values).components for values in (raw, other))
    pair = [
        jnp.broadcast_to(c.covariance(), (K, head.event_dim, head.event_dim))[k]
        for c in (first, second)
    ]
    gap, inverse = second.loc[k] - first.loc[k], jnp.linalg.inv(pair[1])
    determinants = jnp.linalg.slogdet(pair[1])[1] - jnp.linalg.slogdet(pair[0])[1]
    return 0.5 * (jnp.trace(inverse @ pair[0]) + gap @ inverse @ gap + determinants)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_natural_em_is_fisher_inverse_times_score(covariance):
    """The information as the Hessian of the divergence, solved densely, component by component."""
    head, raw, y = normal_case(3, covariance=covariance, min_weight=0.05)
    found = -gradient(lambda r: losses.natural_em(head, r, y, damping=0.0, reduction="sum"))(raw)

    @jax.jit
    def expected(raw, y):
        mixture = head.build(raw)
        share = jnp.exp(mixture.joint_log_prob(y) - mixture.log_prob(y))
        total = jnp.zeros_like(raw)
        for k in range(K):
            score = gradient(lambda r, k=k: share[k] * head.build(r).components.log_prob(y)[k])(raw)
            information = jax.hessian(lambda r, k=k: divergence(head, raw, r, k))(raw)
            total += jnp.linalg.pinv(information, rtol=1e-12) @ score
        by_logits = gradient(lambda r: share @ head.build(r).log_weights())(raw)
        return total + by_logits

    np.testing.assert_allclose(found, jax.vmap(expected)(raw, y), rtol=1e-7, atol=1e-9)
    value = losses.natural_em(head, raw, y)
    np.testing.assert_allclose(value, jaxmdn.nll(head, raw, y), rtol=1e-12)


def test_natural_em_of_shared_shapes_pools_the_components():
    """Tied: the step of the one scale is the responsibilities' mean of the steps of each."""
    head, raw, y = normal_case(2, tied=True, scale_link="exp", min_scale=0.0)
    found = -gradient(lambda r: losses.natural_em(head, r, y, damping=0.0, reduction="sum"))(raw)
    weights, loc, scale = parts_of(head, raw)
    z = (np.asarray(y)[:, None] - loc) / scale
    joint = np.log(weights) + (stats.norm.logpdf(z) - np.log(scale)).sum(-1)
    share = special.softmax(joint, axis=-1)[..., None]
    np.testing.assert_allclose(found[:, -2:], (share * (z**2 - 1)).sum(1) / 2, rtol=1e-9)


def test_natural_em_stays_finite_at_the_floor():
    """A softplus at raw = -60 has no slope: damping leaves no step there, and no NaN."""
    head = jaxmdn.NormalHead(2, 1)
    raw = jnp.asarray([[0.0, 0.0, 0.0, 5.0, -60.0, -60.0]], jnp.float32)
    slope = gradient(lambda r: losses.natural_em(head, r, jnp.ones((1, 1), jnp.float32)))(raw)
    assert np.isfinite(slope).all()
    assert abs(float(slope[0, -1])) < 1e-6


def test_a_step_of_natural_em_is_a_step_of_em():
    """One row's raw outputs shared by all rows (no network): a full step in the locations of a
    single normal is the mean; Newton would need the same."""
    head = jaxmdn.NormalHead(1, 1, scale_link="exp", min_scale=0.0)
    raw, y = jnp.asarray([0.0, 3.0, 1.5]), jnp.asarray(RNG.normal(size=(50, 1)))
    step = gradient(lambda r: losses.natural_em(head, r, y, damping=0.0))(raw)
    np.testing.assert_allclose((raw - step)[1], np.mean(y), rtol=1e-12)


# All of them


OBJECTIVES = {
    "beta_nll": losses.beta_nll,
    "winner_takes_all": losses.winner_takes_all,
    "cell_nll": lambda head, raw, y, **options: losses.cell_nll(head, raw, y, 0.5, **options),
    "natural_em": losses.natural_em,
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_rows_left_out_leave_no_trace(name):
    """NaN in raw outputs and targets of rows that a mask or a weight of zero leaves out."""
    head, raw, y = normal_case(2)
    spoiled_raw, spoiled_y = raw.at[1].set(jnp.nan), y.at[3].set(jnp.inf)
    keep = jnp.asarray([True, False, True, False, True])
    loss = OBJECTIVES[name]
    expected = value_and_gradient(lambda r: loss(head, r, y[::2]))(raw[::2])
    for options in ({"mask": keep}, {"weights": keep.astype(float)}):
        found = value_and_gradient(lambda r, o=options: loss(head, r, spoiled_y, **o))(spoiled_raw)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-10)
        np.testing.assert_allclose(found[1][::2], expected[1], rtol=1e-9)
        assert (np.asarray(found[1])[1::2] == 0).all()


def test_errors(user_errors):
    head = jaxmdn.NormalHead(2, 2, covariance="full")
    raw, y = jnp.zeros((3, head.num_outputs)), jnp.zeros((3, 2))
    for message, call in (
        (
            "beta_nll: expected continuous components with a scale",
            lambda: losses.beta_nll(head, raw, y),
        ),
        (
            "cell_nll: expected continuous components with a dist",
            lambda: losses.cell_nll(head, raw, y, 1.0),
        ),
        (
            "natural_em: expected a NormalHead",
            lambda: losses.natural_em(jaxmdn.CategoricalHead(2), raw, y),
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    low = jaxmdn.NormalHead(2, 2, covariance="low_rank")
    with pytest.raises(NotImplementedError, match="low_rank"):
        losses.natural_em(low, jnp.zeros((3, low.num_outputs)), y)
