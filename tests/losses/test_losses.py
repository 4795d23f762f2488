"""Losses against SciPy, on parameters the oracle decodes from raw outputs, and their edges."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pandas as pd
import pytest
import questions
from scipy import special
from sklearn import metrics

import jaxmdn

N, K, D, C = 5, 3, 2, 4
HEAD = jaxmdn.NormalHead(K, D)
RNG = np.random.default_rng(0)
Y = RNG.normal(size=(N, D))
RAW = RNG.normal(size=(N, HEAD.num_outputs))
WEIGHTS = np.array([1.0, 2.0, 0.5, 0.0, 3.0])
MASK = np.array([True, False, True, True, False])
LOGITS = RNG.normal(size=(N, C))
LABELS = np.array([0, 3, 1, 1, 2])


HEADS = {
    f"{covariance}{'-tied' * tied}": jaxmdn.NormalHead(K, D, covariance=covariance, tied=tied)
    for covariance in oracles.COVARIANCES
    for tied in (False, True)
}


def rows_oracle(head, raw, y):
    return -oracles.parameters(head, raw).log_prob(y)


ROWS = rows_oracle(HEAD, RAW, Y)


@pytest.mark.optimised
@pytest.mark.parametrize("name", HEADS)
def test_nll_against_scipy(name):
    head = HEADS[name]
    raw = jnp.asarray(np.random.default_rng(1).normal(size=(N, head.num_outputs)))
    expected = rows_oracle(head, raw, Y)
    np.testing.assert_allclose(jaxmdn.nll(head, raw, Y, reduction="none"), expected, rtol=1e-12)


def test_nll_in_three_dimensions_checks_the_order_of_the_packed_factor():
    head = jaxmdn.NormalHead(2, 3, covariance="full")
    raw = jnp.asarray(RNG.normal(size=(4, head.num_outputs)))
    y = jnp.asarray(RNG.normal(size=(4, 3)))
    rows = jaxmdn.nll(head, raw, y, reduction="none")
    np.testing.assert_allclose(rows, rows_oracle(head, raw, y), rtol=1e-12)


def test_log_prob_begins_at_the_raw_outputs():
    raw = jnp.asarray(RAW)

    def rows(change=lambda mixture: mixture, y=Y):
        return lambda raw: jaxmdn.log_prob(change(HEAD(raw)), y)

    def fused(function):
        return "rows_nll" in str(jax.make_jaxpr(function)(raw))

    assert fused(rows())
    assert not fused(rows(y=Y[:1]))
    assert not fused(rows(lambda m: dataclasses.replace(m, logits=m.logits)))
    assert not fused(rows(lambda m: jax.tree.map(jnp.asarray, m)))
    assert HEAD(raw).origin is None

    @jax.jit
    def gradients(raw):
        found, pull = jax.vjp(rows(), raw)
        plain = jax.grad(lambda raw: jnp.vdot(WEIGHTS, HEAD.log_prob(raw, jnp.asarray(Y))))(raw)
        return found, *pull(jnp.asarray(WEIGHTS)), plain

    found, gradient, plain = gradients(raw)
    np.testing.assert_allclose(found, -ROWS, rtol=1e-12)
    np.testing.assert_allclose(gradient, plain, rtol=1e-10, atol=1e-12)


def test_log_prob_of_every_head_that_has_one_pass_is_that_of_its_parameters():
    """Far out, beside dead components and without a number, too; values and gradients."""
    names = ("isotropic", "diagonal", "full", "low-rank", "tied", "scalar")
    heads = {name: questions.heads()[name] for name in names}
    rows = {name: tuple(map(np.array, questions.rows(head))) for name, head in heads.items()}
    for raw, y in rows.values():
        y[:3] = [[np.nan], [1e15], [-1e4]]
        raw[3:5, 0], raw[5], raw[6] = [-1e4, 1e4], 50, -50

    @jax.jit
    def answers(rows):
        def each(name, change):
            raw, y = rows[name]
            found, pull = jax.vjp(lambda raw: jaxmdn.log_prob(change(heads[name](raw)), y), raw)
            return found, *pull(jnp.ones_like(found))

        without_origin = partial(jax.tree.map, jnp.positive)
        return {name: (each(name, lambda m: m), each(name, without_origin)) for name in heads}

    for name, ((value, gradient), (plain, slope)) in answers(rows).items():
        np.testing.assert_allclose(value, plain, rtol=1e-10, err_msg=name)
        size = np.max(np.abs(slope), axis=-1, keepdims=True)
        np.testing.assert_allclose(gradient / size, slope / size, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_nll_reductions(weights, mask):
    count = np.ones(N) if weights is None else np.asarray(weights)
    count = count if mask is None else np.where(mask, count, 0.0)
    loss = partial(jaxmdn.nll, HEAD, RAW, Y, weights=weights, mask=mask)
    np.testing.assert_allclose(loss(), np.sum(count * ROWS) / np.sum(count), rtol=1e-12)
    np.testing.assert_allclose(loss(reduction="sum"), np.sum(count * ROWS), rtol=1e-12)
    np.testing.assert_allclose(loss(reduction="none"), count * ROWS, rtol=1e-12)


def value_and_gradient(function, *arguments, **options):
    """One compilation; NumPy numbers."""
    value, gradient = jax.jit(jax.value_and_grad(function, **options))(*arguments)
    return jax.tree.map(np.asarray, (value, gradient))


def test_masked_rows_may_hold_nan():
    keep = np.asarray(MASK)
    raw, y = (jnp.asarray(np.where(keep[:, None], rows, np.nan)) for rows in (RAW, Y))
    loss, gradients = value_and_gradient(
        lambda raw, y: jaxmdn.nll(HEAD, raw, y, mask=MASK), raw, y, argnums=(0, 1)
    )
    np.testing.assert_allclose(loss, ROWS[keep].mean(), rtol=1e-12)
    for gradient in gradients:
        assert np.all(gradient[~keep] == 0)
        assert np.all(np.isfinite(gradient))
        assert np.all(np.any(gradient[keep] != 0, axis=-1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_of_zero_leaves_its_row_out(bad):
    raw, y = np.array(RAW), np.array(Y)
    raw[3], y[3] = np.nan, bad  # WEIGHTS[3] is zero
    loss, gradient = value_and_gradient(
        lambda raw: jaxmdn.nll(HEAD, raw, jnp.asarray(y), weights=WEIGHTS), jnp.asarray(raw)
    )
    np.testing.assert_allclose(loss, np.average(ROWS, weights=WEIGHTS), rtol=1e-12)
    assert np.all(gradient[3] == 0)
    assert np.all(np.isfinite(gradient))


def test_unmasked_nan_reaches_the_loss():
    y = np.where(np.arange(N)[:, None] == 0, np.nan, Y)
    assert np.isnan(jaxmdn.nll(HEAD, RAW, y))
    assert np.isnan(jaxmdn.nll(HEAD, RAW, y, mask=MASK))


@pytest.mark.parametrize(
    ("rows", "options"),
    [(0, {}), (N, {"mask": jnp.zeros(N, bool)}), (N, {"weights": jnp.zeros(N)})],
    ids=["no rows", "all masked", "no weight"],
)
def test_nll_of_nothing_is_zero_with_zero_gradient(rows, options):
    value, gradient = value_and_gradient(
        lambda raw: jaxmdn.nll(HEAD, raw, Y[:rows], **options), RAW[:rows]
    )
    assert value == 0.0
    assert gradient.shape == (rows, HEAD.num_outputs)
    assert np.all(gradient == 0.0)


def test_nll_takes_any_leading_axes():
    rows = jaxmdn.nll(HEAD, RAW[:4].reshape(2, 2, -1), Y[:4].reshape(2, 2, D), reduction="none")
    np.testing.assert_allclose(rows, ROWS[:4].reshape(2, 2), rtol=1e-12)
    single = jaxmdn.nll(HEAD, RAW[0], Y[0], reduction="none")
    np.testing.assert_allclose(single, ROWS[0], rtol=1e-12)
    # One density, several targets, each with its weight: raw is shared.
    expected = rows_oracle(HEAD, np.repeat(RAW[:1], N, axis=0), Y)
    shared = jaxmdn.nll(HEAD, RAW[0], Y, weights=WEIGHTS)
    np.testing.assert_allclose(shared, np.average(expected, weights=WEIGHTS), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_raw_is_computed_in_float32(dtype, request):
    if dtype == jnp.float16:
        request.getfixturevalue("float16")
    raw, y = RAW.astype(dtype), Y.astype(jnp.float32)
    rows = jaxmdn.nll(HEAD, raw, y, reduction="none")
    assert rows.dtype == jnp.float32
    # float32 rounding of numbers of order ten; bf16 arithmetic would be off by 1e-2.
    np.testing.assert_allclose(rows, rows_oracle(HEAD, raw, y), rtol=1e-5)
    gradient = jax.grad(lambda raw: jaxmdn.nll(HEAD, raw, y))(raw)
    assert gradient.dtype == dtype


def test_nll_of_labeled_targets_is_the_joint():
    head = jaxmdn.ClassConditionalHead(2, HEAD)
    raw, label = RNG.normal(size=(N, head.num_outputs)), np.array([0, 1, 1, 0, 1])
    inner = np.asarray(raw[:, 2:]).reshape(N, 2, -1)
    log_class = special.log_softmax(np.asarray(raw[:, :2]), axis=-1)
    every = log_class - rows_oracle(HEAD, inner, Y[:, None])  # [N, 2]
    joint = jaxmdn.nll(head, raw, jaxmdn.Labeled(label, Y), reduction="none")
    np.testing.assert_allclose(joint, -every[np.arange(N), label], rtol=1e-12)
    marginal = jaxmdn.nll(head, raw, Y, reduction="none")
    np.testing.assert_allclose(marginal, -special.logsumexp(every, axis=-1), rtol=1e-12)
    dirty = jaxmdn.Labeled(label, np.where(MASK[:, None], Y, np.nan))
    expected = -every[np.arange(N), label][np.asarray(MASK)].mean()
    np.testing.assert_allclose(jaxmdn.nll(head, raw, dirty, mask=MASK), expected, rtol=1e-12)


def test_nll_gradient_in_80_digits():
    head = jaxmdn.NormalHead(2, 2, covariance="full", min_weight=0.01)
    raw, share = RNG.normal(size=(3, head.num_outputs)), WEIGHTS[:3] / np.sum(WEIGHTS[:3])
    loss, gradients = value_and_gradient(
        lambda raw, y: jaxmdn.nll(head, raw, y, weights=WEIGHTS[:3]), raw, Y[:3], argnums=(0, 1)
    )
    np.testing.assert_allclose(loss, np.sum(share * rows_oracle(head, raw, Y[:3])), rtol=1e-12)
    rows = zip(raw, Y[:3], strict=True)
    exact = zip(*(oracles.exact_gradient(head, *row) for row in rows), strict=True)
    for gradient, slopes in zip(gradients, exact, strict=True):
        np.testing.assert_allclose(gradient, -share[:, None] * np.array(slopes), rtol=1e-10)


def test_one_trace_per_shape_and_the_head_is_static(monkeypatch):
    traces, check = [], jaxmdn.NormalHead.check_raw

    def counting(self, function, raw):
        traces.append(raw.shape)
        return check(self, function, raw)

    monkeypatch.setattr(jaxmdn.NormalHead, "check_raw", counting)
    outputs = jaxmdn.NormalHead(5).num_outputs
    step = jax.jit(jaxmdn.nll, static_argnums=0)
    for value in (0.0, 1.0, 2.0):  # equal heads, other values
        step(jaxmdn.NormalHead(5), jnp.full((3, outputs), value), jnp.zeros((3, 1)))
        jaxmdn.nll(jaxmdn.NormalHead(5), jnp.full((3, outputs), value), jnp.zeros((3, 1)))
    assert traces == [(3, outputs)]
    jaxmdn.nll(jaxmdn.NormalHead(5), jnp.zeros((4, outputs)), jnp.zeros((4, 1)))
    jaxmdn.nll(jaxmdn.NormalHead(5, min_scale=0.1), jnp.zeros((4, outputs)), jnp.zeros((4, 1)))
    assert traces == [(3, outputs), (4, outputs), (4, outputs)]


NLL_ERRORS = {
    "raw width": (
        ({"raw": RAW[:, 1:]}, ValueError),
        r"nll: expected raw of shape \[\.\.\., 15\].*got \[5, 14\]",
    ),
    "raw dtype": (
        ({"raw": RAW.astype(int)}, TypeError),
        "nll: raw must have a real floating dtype",
    ),
    "y size": (({"y": Y[:, :1]}, ValueError), r"y of shape \[\.\.\., 2\].*got \[5, 1\]"),
    "y rows": (({"y": Y[:4]}, ValueError), r"axes must broadcast.*\[5\].*\[4\]"),
    "y dtype": (({"y": Y.astype(int)}, TypeError), "y must have a real floating dtype, got int64"),
    "reduction": (
        ({"reduction": "max"}, ValueError),
        "nll: reduction must be one of 'mean', 'sum', 'none'; got 'max'",
    ),
    "weights shape": (
        ({"weights": WEIGHTS[:, None]}, ValueError),
        r"nll: weights must have one entry per row, shape \[5\], got \[5, 1\]",
    ),
    "weights dtype": (
        ({"weights": LABELS}, TypeError),
        "nll: weights must have a real floating dtype, got int64",
    ),
    "mask shape": (
        ({"mask": MASK[:4]}, ValueError),
        r"nll: mask must have one entry per row, shape \[5\], got \[4\]",
    ),
    "mask dtype": (
        ({"mask": WEIGHTS}, TypeError),
        "nll: mask must be boolean.*got float64; pass real-valued row weights as weights=",
    ),
    "implementation": (
        ({"implementation": "cuda"}, ValueError),
        "nll: implementation must be one of 'xla', 'xla_chunked', 'pallas_triton'; got 'cuda'",
    ),
    "chunk_size": (({"chunk_size": 0}, ValueError), "nll: chunk_size must be at least 1, got 0"),
}


@pytest.mark.parametrize("implementation", ["xla", "xla_chunked"])
def test_one_target_is_shared_by_all_rows(implementation):
    options = {"mask": MASK, "weights": WEIGHTS, "implementation": implementation}
    every = jaxmdn.nll(HEAD, RAW, jnp.broadcast_to(Y[0], Y.shape), **options)
    np.testing.assert_allclose(jaxmdn.nll(HEAD, RAW, Y[0], **options), every, rtol=1e-12)


@pytest.mark.parametrize("case", NLL_ERRORS)
def test_nll_errors(user_errors, case):
    (changes, kind), message = NLL_ERRORS[case]
    arguments = {"raw": RAW, "y": Y} | changes
    with pytest.raises(kind, match=message):
        jaxmdn.nll(HEAD, **arguments)


def test_categorical_nll_against_scipy_sklearn_and_optax():
    rows = jaxmdn.categorical_nll(LOGITS, LABELS, reduction="none")
    expected = -special.log_softmax(np.asarray(LOGITS), axis=-1)[np.arange(N), LABELS]
    np.testing.assert_allclose(rows, expected, rtol=1e-12)
    peer = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    np.testing.assert_allclose(rows, peer, rtol=1e-12)
    probabilities = special.softmax(np.asarray(LOGITS), axis=-1)
    peer = metrics.log_loss(LABELS, probabilities, labels=range(C), sample_weight=WEIGHTS)
    weighted = jaxmdn.categorical_nll(LOGITS, LABELS, weights=WEIGHTS)
    np.testing.assert_allclose(weighted, peer, rtol=1e-12)


def test_categorical_nll_gradient_is_softmax_minus_one_hot():
    gradient = jax.grad(
        lambda logits: jaxmdn.categorical_nll(logits, LABELS, weights=WEIGHTS, reduction="sum")
    )(LOGITS)
    residual = special.softmax(np.asarray(LOGITS), axis=-1) - np.eye(C)[np.asarray(LABELS)]
    np.testing.assert_allclose(gradient, WEIGHTS[:, None] * residual, atol=1e-14)


def test_categorical_nll_edges():
    @jax.jit
    @jax.value_and_grad
    def value_and_grad(logits, label):
        return jaxmdn.categorical_nll(logits, label, reduction="sum")

    for label in (-1, C):  # no such class
        value, gradient = value_and_grad(LOGITS[:1], jnp.asarray([label]))
        assert value == np.inf
        assert np.all(np.asarray(gradient) == 0)
    excluded = np.array(LOGITS[:1])
    excluded[0, 3] = -np.inf
    value, gradient = value_and_grad(jnp.asarray(excluded), jnp.asarray([1]))
    expected = -special.log_softmax(excluded[0, :3])[1]
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert np.all(np.isfinite(gradient))
    assert gradient[0, 3] == 0
    assert value_and_grad(jnp.asarray(excluded), jnp.asarray([3]))[0] == np.inf


def test_masked_rows_of_categorical_nll_may_hold_anything():
    keep = np.asarray(MASK)
    dirty, labels = np.array(LOGITS), np.array(LABELS)
    dirty[1], labels[4] = np.nan, 99  # rows 1 and 4 are masked
    loss, gradient = value_and_gradient(
        lambda logits: jaxmdn.categorical_nll(logits, jnp.asarray(labels), mask=MASK),
        jnp.asarray(dirty),
    )
    expected = metrics.log_loss(
        LABELS[keep], special.softmax(np.asarray(LOGITS)[keep], axis=-1), labels=range(C)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[~keep] == 0)


def test_categorical_nll_errors(user_errors):
    with pytest.raises(TypeError, match="labels must have an integer dtype, got float64"):
        jaxmdn.categorical_nll(LOGITS, LABELS.astype(float))
    with pytest.raises(TypeError, match="logits must have a real floating dtype, got int64"):
        jaxmdn.categorical_nll(LOGITS.astype(int), LABELS)
    message = r"categorical_nll: expected labels of shape \[5\].*\[5, 4\]\), got \[5, 1\]"
    with pytest.raises(ValueError, match=message):
        jaxmdn.categorical_nll(LOGITS, LABELS[:, None])


def test_a_table_is_named(user_errors):
    table = pd.DataFrame({"y": [0.0, 1.0]})
    head = jaxmdn.NormalHead(1, 1)
    raw = jnp.zeros((2, head.num_outputs))
    for call in (lambda: jaxmdn.nll(head, raw, table), lambda: jaxmdn.log_prob(head(raw), table)):
        with pytest.raises(TypeError, match=r"y must be an array, got DataFrame; .*to_numpy"):
            call()


def test_one_hot_rows_and_single_numbers_are_named(user_errors):
    head, hot = jaxmdn.CategoricalHead(C), np.eye(C)[LABELS]
    with pytest.raises(ValueError, match=r"of one-hot rows pass jax.numpy.argmax\(y"):
        jaxmdn.nll(head, LOGITS, hot)
    with pytest.raises(ValueError, match=r"of one-hot rows pass jax.numpy.argmax\(labels"):
        jaxmdn.categorical_nll(LOGITS, hot)
    density = HEAD(jnp.asarray(RAW))
    with pytest.raises(TypeError, match=r"coverage: levels must be a sequence of numbers, got 0.9"):
        jaxmdn.coverage(density, Y, 0.9)
    with pytest.raises(TypeError, match="merge: mixtures must be a sequence of them, got one Mix"):
        jaxmdn.merge(density)
