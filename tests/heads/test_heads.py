"""Heads: width, layout, bounds, inverses, configuration and every error they can raise."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from head_cases import CONTINUOUS, DISCRETE, every_case, every_density, rows
from scipy import special

import jaxmdn
from jaxmdn import CategoricalHead, ClassConditionalHead, NormalHead, heads
from jaxmdn.heads import links

# ------------------------------------------------------------------------------ width and values


@pytest.mark.parametrize(
    ("options", "width"),
    [
        # K = 3, D = 4: 3 logits and 12 means, then
        ({"covariance": "isotropic"}, 15 + 3),
        ({"covariance": "isotropic", "tied": True}, 15 + 1),
        ({"covariance": "diagonal"}, 15 + 12),
        ({"covariance": "diagonal", "tied": True}, 15 + 4),
        ({"covariance": "full"}, 15 + 12 + 3 * 6),
        ({"covariance": "full", "tied": True}, 15 + 4 + 6),
        ({"covariance": "low_rank", "rank": 2}, 15 + 12 + 3 * 8),
        ({"covariance": "low_rank", "rank": 2, "tied": True}, 15 + 4 + 8),
    ],
)
def test_num_outputs(options, width):
    head = NormalHead(3, 4, **options)
    assert head.num_outputs == width
    assert ClassConditionalHead(5, head).num_outputs == 5 + 5 * width
    mixture = jax.eval_shape(head, jax.ShapeDtypeStruct((7, width), jnp.float32))
    assert mixture.batch_shape == (7,)
    assert (mixture.num_components, mixture.event_dim) == (3, 4)


def test_num_outputs_of_classes():
    assert CategoricalHead(4).num_outputs == 4


@every_density
def test_parameters_are_the_oracles(case):
    head, raw, _ = rows(case)
    built, expected = oracles.of_mixture(head(raw)), case.oracle(head, raw)
    np.testing.assert_allclose(built.weights, expected.weights, rtol=1e-12)
    np.testing.assert_allclose(built.loc, expected.loc, rtol=1e-12)
    np.testing.assert_allclose(built.covariances, expected.covariances, rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------------- inverses


def _raw_but_for_softmax(head, raw):
    """Raw outputs with every group of logits normalised: what an inverse can know of them."""
    raw = np.array(raw)
    groups = [np.arange(getattr(head, "num_classes", 0))]
    if isinstance(head, NormalHead):
        groups = [oracles.layout(head)["logits"]]
    elif isinstance(head, ClassConditionalHead):
        groups += list(
            oracles.layout(head.head)["logits"]
            + head.num_classes
            + np.arange(head.num_classes)[:, None] * head.head.num_outputs
        )
    for group in groups:
        raw[..., group] = special.log_softmax(raw[..., group], axis=-1)
    return raw


@every_case
def test_inverse_undoes_the_head(case):
    head, raw, _ = rows(case)
    density = head(raw)
    back = jax.jit(head.inverse)(density)
    np.testing.assert_allclose(
        _raw_but_for_softmax(head, back), _raw_but_for_softmax(head, raw), rtol=1e-9, atol=1e-9
    )
    again = head(back)
    for a, b in zip(
        jax.tree.leaves(again.map_parameters(_normalised)),
        jax.tree.leaves(density.map_parameters(_normalised)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def _normalised(parameter, rank):
    # Logits, and only they, are free up to a constant; for other parameters this loses nothing
    # but the mean over the last axis, which test_parameters_are_the_oracles pins down.
    parameter = np.asarray(parameter)
    return parameter - parameter.mean(axis=-1, keepdims=True)


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_inverse_reaches_densities_made_elsewhere(covariance):
    rng = np.random.default_rng(3)
    mixture = oracles.random_mixture(rng, covariance, 2, 3, (4,))
    rank = mixture.components.factor.shape[-1] if covariance == "low_rank" else 1
    head = NormalHead(2, 3, covariance=covariance, rank=rank, min_scale=1e-6)
    built = oracles.of_mixture(head(jax.jit(head.inverse)(mixture)))
    expected = oracles.of_mixture(mixture)
    np.testing.assert_allclose(built.weights, np.broadcast_to(expected.weights, (4, 2)), rtol=1e-10)
    np.testing.assert_allclose(built.loc, expected.loc + 0 * built.loc, rtol=1e-10)
    np.testing.assert_allclose(
        built.covariances, expected.covariances + 0 * built.covariances, rtol=1e-8, atol=1e-10
    )


def test_inverse_says_no_below_the_floor():
    head = NormalHead(2, 1, min_scale=0.5)
    normal = jaxmdn.components.Normal(loc=jnp.zeros((2, 1)), scale=jnp.asarray([[0.25], [1.0]]))
    raw = head.inverse(jaxmdn.Mixture(logits=jnp.zeros(2), components=normal))
    assert not np.isfinite(raw[4])
    assert np.isfinite(raw[5])


# ---------------------------------------------------------------------------------------- bounds

WILD = np.array([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("K", [2, 5])
def test_weights_stay_between_their_bounds(K, dtype):
    floor = 0.02
    rng = np.random.default_rng(K)
    logits = jnp.asarray(rng.choice(WILD, size=(50, K)), dtype)
    head = NormalHead(K, 1, min_weight=floor)
    raw = jnp.concatenate([logits, jnp.zeros((50, 2 * K), dtype)], axis=-1)

    @jax.jit
    def weights_and_slopes(raw, direction):
        value, pull = jax.vjp(lambda raw: head(raw).weights(), raw)
        return value, pull(direction)[0]

    value, slopes = weights_and_slopes(raw, jnp.asarray(rng.normal(size=logits.shape), dtype))
    slack = 10 * float(np.finfo(dtype).eps)
    assert np.all(value >= floor * (1 - slack))
    assert np.all(value <= (1 - (K - 1) * floor) * (1 + slack))
    np.testing.assert_allclose(np.sum(value, axis=-1), 1.0, rtol=slack)
    np.testing.assert_allclose(
        value,
        floor + (1 - K * floor) * special.softmax(np.asarray(logits, np.float64), axis=-1),
        rtol=1e-5,
    )
    assert np.all(np.isfinite(slopes))


def test_class_probabilities_stay_above_their_floor():
    head = CategoricalHead(3, min_weight=0.1)
    value = head(jnp.asarray([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], jnp.float32)).probabilities()
    np.testing.assert_allclose(value, [[0.8, 0.1, 0.1], [1 / 3] * 3], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("link", "lower", "upper"),
    [
        ("softplus", 0.25, np.inf),
        (links.Softplus(floor=0.5), 0.75, np.inf),
        ("exp", 0.25, np.inf),
        (links.DampedExp(reg=0.01), 0.25, 10.25),
        (links.Bounded(0.5, 2.0), 0.75, 2.25),
        ("sigmoid", 0.25, 1.25),
    ],
    ids=repr,
)
def test_scales_stay_between_their_bounds(link, lower, upper, dtype):
    head = NormalHead(7, 1, scale_link=link, min_scale=0.25)
    raw = np.zeros(head.num_outputs, dtype)
    raw[oracles.layout(head)["scale"]] = WILD
    scale = np.asarray(head(jnp.asarray(raw)).components.scale, np.float64)[:, 0]
    slack = 4 * float(np.finfo(dtype).eps)
    assert np.all(scale >= lower * (1 - slack))
    assert np.all(scale <= upper * (1 + slack))
    np.testing.assert_allclose(scale[0], lower, rtol=1e-6)  # raw = -1e4
    if np.isfinite(upper):
        np.testing.assert_allclose(scale[-1], upper, rtol=1e-6)  # raw = 1e4


def test_full_covariance_keeps_conditional_scales_above_the_floor():
    head = NormalHead(1, 2, covariance="full", min_scale=0.1)
    raw = np.zeros(head.num_outputs)
    raw[oracles.layout(head)["scale"]], raw[oracles.layout(head)["shape"]] = -1e4, 3.0
    covariance = np.asarray(jaxmdn.covariance(head(jnp.asarray(raw))))
    # y_2 = -3 y_1 + noise: variances 0.01 and 9 * 0.01 + 0.01.
    np.testing.assert_allclose(covariance, [[0.01, -0.03], [-0.03, 0.1]], rtol=1e-12)


# --------------------------------------------------------------------------------- configuration


def _heads():
    made = [case.make(3, 2) for case in CONTINUOUS + DISCRETE]
    link = links.Bounded(0.1, 2.0)
    return [*made, NormalHead(2, 3, scale_link=link, min_scale=0.0, min_weight=0.1)]


@pytest.mark.parametrize("head", _heads(), ids=repr)
def test_config_survives_json(head):
    again = heads.from_config(json.loads(json.dumps(heads.to_config(head))))
    assert again == head
    assert hash(again) == hash(head)
    assert again is not head


def test_every_field_counts_for_equality():
    assert len(set(_heads())) == len(_heads())
    head = NormalHead(3, 2, covariance="full")
    changes = {
        "num_components": 4,
        "event_dim": 3,
        "covariance": "diagonal",
        "rank": 2,
        "tied": True,
        "scale_link": "exp",
        "min_scale": 0.5,
        "min_weight": 0.1,
        "graph": ((), ()),
    }
    assert set(changes) == {field.name for field in dataclasses.fields(head)}
    for name, value in changes.items():
        assert dataclasses.replace(head, **{name: value}) != head
    assert NormalHead(3, 2, scale_link="softplus") == NormalHead(3, 2, scale_link=links.Softplus())


def test_head_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NormalHead(3, 2).rank = 2


def test_head_is_a_static_argument_of_jit():
    @partial(jax.jit, static_argnums=0)
    def total(head, raw):
        return jnp.sum(head(raw).components.loc) + head.num_components

    raw = jnp.arange(9.0)
    assert total(NormalHead(3, 1), raw) == 3 + 4 + 5 + 3
    assert total(NormalHead(3, 1), raw) == 15
    assert total(NormalHead(1, 3), raw[:7]) == 1 + 2 + 3 + 1


def test_numpy_numbers_become_python_ones(user_errors):
    # A float64 scalar of NumPy would widen float32 parameters; an int64 has no JSON form.
    head = NormalHead(
        np.int64(2),
        np.int32(1),
        tied=np.bool_(True),
        min_scale=np.float64(0.5),
        min_weight=np.float32(0.25),
    )
    assert head == NormalHead(2, 1, tied=True, min_scale=0.5, min_weight=0.25)
    assert head(jnp.zeros(head.num_outputs, jnp.float32)).components.scale.dtype == jnp.float32
    for made in (head, CategoricalHead(np.int64(3)), ClassConditionalHead(np.int64(3), head)):
        assert heads.from_config(json.loads(json.dumps(heads.to_config(made)))) == made


# ---------------------------------------------------------------------------------------- errors

NH, CH, CC = NormalHead, CategoricalHead, ClassConditionalHead


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: NH(0), ValueError, ["NormalHead: num_components", "at least 1", "got 0"]),
        (lambda: NH(2.0), TypeError, ["NormalHead: num_components", "int", "float (2.0)"]),
        (lambda: NH(True), TypeError, ["NormalHead: num_components", "int", "bool (True)"]),
        (lambda: NH(2, 0), ValueError, ["NormalHead: event_dim", "at least 1", "got 0"]),
        (lambda: NH(2, covariance="spherical"), ValueError,
         ["NormalHead: covariance", "'isotropic', 'diagonal', 'full', 'low_rank'", "'spherical'"]),
        (lambda: NH(2, 2, covariance="low_rank", rank=3), ValueError,
         ["NormalHead: rank", "event_dim (2)", "got 3", 'covariance="full"']),
        (lambda: NH(2, 2, rank=0), ValueError, ["NormalHead: rank", "at least 1", "got 0"]),
        (lambda: NH(2, tied="yes"), ValueError, ["NormalHead: tied", "True, False", "'yes'"]),
        (lambda: NH(2, min_scale=-1.0), ValueError, ["NormalHead: min_scale", "[0, inf)", "-1.0"]),
        (lambda: NH(2, min_scale=np.nan), ValueError, ["NormalHead: min_scale", "got nan"]),
        (lambda: NH(2, min_scale="1"), TypeError, ["NormalHead: min_scale", "number", "str ('1')"]),
        (lambda: NH(2, min_weight=0.5), ValueError, ["NormalHead: min_weight", "[0, 0.5)", "0.5"]),
        (lambda: NH(2, scale_link="relu"), ValueError, ["link", "'softplus'", "got 'relu'"]),
        (lambda: NH(2, scale_link="bounded"), ValueError, ["'bounded'", "links.Bounded(...)"]),
        (lambda: NH(2, scale_link="identity"), ValueError,
         ["NormalHead: scale_link Identity()", "-inf", "must be positive", "softplus"]),
        (lambda: NH(2, scale_link=links.Bounded(-1, 1), min_scale=0.5), ValueError,
         ["NormalHead: scale_link Bounded(lower=-1, upper=1)", "reaches -0.5"]),
        (lambda: CH(1), ValueError, ["CategoricalHead: num_classes", "at least 2", "got 1"]),
        (lambda: CH(4, min_weight=0.25), ValueError, ["CategoricalHead: min_weight", "[0, 0.25)"]),
        (lambda: CC(1, NH(2)), ValueError, ["ClassConditionalHead: num_classes", "2", "got 1"]),
        (lambda: CC(3, "normal"), TypeError, ["ClassConditionalHead: head", "str", "NormalHead"]),
        (lambda: heads.from_config({"type": "Nope"}), ValueError,
         ["heads.from_config: type", "'NormalHead'", "got 'Nope'"]),
        (lambda: NH(3, 2)(jnp.zeros((4, 14))), ValueError,
         ["NormalHead: expected raw of shape [..., 15]", "NormalHead(num_components=3", "[4, 14]"]),
        (lambda: NH(3, 2)(jnp.float32(0)), ValueError, ["raw of shape [..., 15]", "got []"]),
        (lambda: NH(3, 2)(jnp.zeros((4, 15), jnp.int32)), TypeError,
         ["NormalHead: raw", "floating", "int32", "astype"]),
        (lambda: NH(3, 2)([0.0] * 15), TypeError, ["NormalHead: raw", "array", "list", "asarray"]),
        (lambda: NH(3, 2, covariance="full").inverse(NH(3, 2)(jnp.zeros(15))), TypeError,
         ["NormalHead.inverse", 'covariance="full"', "FullNormal", "got Normal"]),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(call, error, parts, user_errors):
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), part


@pytest.mark.parametrize(
    ("y", "error", "parts"),
    [
        (
            jnp.zeros((4, 3)),
            ValueError,
            ["expected y of shape [..., 2]", "event dimension D", "[4, 3]"],
        ),
        (jnp.zeros(4), ValueError, ["expected y of shape [..., 2]", "got [4]"]),
        (jnp.zeros((5, 2)), ValueError, ["broadcast", "density [4]", "y [5]"]),
        (jnp.zeros((4, 2), jnp.int32), TypeError, ["y", "floating", "int32"]),
    ],
)
def test_wrong_targets(y, error, parts, user_errors):
    head = NormalHead(3, 2)
    raw = jnp.zeros((4, head.num_outputs))
    for name, call in {
        "log_prob": lambda: jaxmdn.log_prob(head(raw), y),
        "NormalHead": lambda: jaxmdn.nll(head, raw, y),
    }.items():
        with pytest.raises(error) as caught:
            call()
        for part in [f"{name}: ", *parts]:
            assert part in str(caught.value), part


def test_a_scalar_target_is_told_to_keep_its_axis(user_errors):
    head = NormalHead(3, 1)
    with pytest.raises(ValueError, match=r"use y\[\.\.\., None\]"):
        jaxmdn.nll(head, jnp.zeros((4, head.num_outputs)), jnp.zeros(4))


def test_categorical_targets():
    density = CategoricalHead(3)(jnp.zeros((5, 3)))
    labels = jnp.asarray([0, 2, 3, -1, 2**31 - 1])[:, None]
    expected = [np.log(1 / 3)] * 2 + [-np.inf] * 3
    np.testing.assert_allclose(jaxmdn.log_prob(density, labels), expected, rtol=1e-12)
    halves = jaxmdn.log_prob(density, jnp.asarray([0.0, 0.5, np.nan, 2.0, 1e10])[:, None])
    np.testing.assert_array_equal(np.isfinite(halves), [True, False, False, True, False])
    for undefined in (jaxmdn.mean, jaxmdn.variance, jaxmdn.covariance):
        with pytest.raises(TypeError, match="not defined for Categorical"):
            undefined(density)
