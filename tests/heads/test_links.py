"""Every link against 80-digit arithmetic: value, slope, range, inverse, configuration."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import mp

from jaxmdn.heads import links

LINKS = [
    links.Identity(),
    links.Exp(),
    links.Softplus(),
    links.Softplus(floor=0.5),
    links.DampedExp(),
    links.DampedExp(reg=4.0),
    links.Bounded(-2.0, 3.0),
    links.Bounded(1e-3, 10.0),
    links.Sigmoid(),
    links.Tanh(),
]
every_link = pytest.mark.parametrize("link", LINKS, ids=repr)

# Links are static, so that each is one program a function and dtype.
map_of = jax.jit(lambda link, raw: link(raw), static_argnums=0)
inverse_of = jax.jit(lambda link, value: link.inverse(value), static_argnums=0)
both_of = jax.jit(lambda link, raw: link.value_and_slope(raw), static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def differentiated(link, raw):
    result, pull = jax.vjp(link, raw)
    return result, *pull(jnp.ones_like(result))


RAW = np.concatenate([[0.0], *[[-x, x] for x in (1e-4, 0.3, 1.0, 5.0, 30.0, 80.0, 1e3, 1e4)]])


def _exact(link, raw):
    """Value and slope in 80 digits; what float64 or float32 cannot hold becomes 0 or inf."""

    def value(x):
        return oracles.LINKS[type(link)](link, x)

    step = mp.mpf("1e-30")
    points = [mp.mpf(float(x)) for x in raw]
    values = [value(x) for x in points]
    slopes = [(value(x + step) - value(x - step)) / (2 * step) for x in points]
    return np.array(values, np.float64), np.array(slopes, np.float64)


@every_link
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_slope(link, dtype):
    raw = RAW.astype(dtype)
    value, slope = _exact(link, raw)
    info = np.finfo(dtype)
    largest, smallest = float(info.max), float(info.tiny)
    fits = (value < largest) & (slope < largest)  # Exp overflows, as it says
    assert np.all(fits) or isinstance(link, links.Exp)
    result, derivative = map(np.asarray, differentiated(link, raw))
    assert result.dtype == raw.dtype
    # exp(raw) inherits the rounding of its argument, |raw| <= 80, in the exponent.
    rtol = {"float32": 2e-5, "float64": 5e-14}[dtype]
    # Numbers below the smallest normal one are flushed to zero; an end of an interval such as
    # lower + width * sigmoid is known to a rounding of the interval's size, and the slope with it.
    lower, upper = link.range
    size = max(abs(end) for end in (lower, upper, 1.0) if np.isfinite(end))
    # The exact slope is a difference of steps of 1e-30, in 80 digits.
    atol = max(smallest, 1e-45 if isinstance(link, links.Tanh) else size * float(info.eps))
    atol_value = atol if isinstance(link, links.Bounded) else smallest
    np.testing.assert_allclose(result[fits], value[fits], rtol, atol_value)
    np.testing.assert_allclose(derivative[fits], slope[fits], rtol, atol)
    assert np.all(result[~fits] == np.inf)


@every_link
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slope_for_the_fused_likelihoods(link, dtype):
    raw = np.concatenate([RAW[np.abs(RAW) <= 80], [0.0]]).astype(dtype)
    result, derivative = both_of(link, raw)
    assert result.dtype == derivative.dtype == raw.dtype
    # The same formulas in another order: a few roundings.
    few = 8 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(result, map_of(link, raw), few, float(np.finfo(dtype).tiny))
    _, slope = _exact(link, raw)
    # As in test_value_and_slope.
    rtol = {"float32": 2e-5, "float64": 5e-14}[dtype]
    lower, upper = link.range
    size = max(abs(end) for end in (lower, upper, 1.0) if np.isfinite(end))
    info = np.finfo(dtype)
    atol = max(info.tiny, 1e-45 if isinstance(link, links.Tanh) else float(size * info.eps))
    np.testing.assert_allclose(derivative, slope, rtol, atol)


@every_link
def test_slope_has_a_slope(link):
    # The second derivatives of a fused likelihood come from that of the slope, and from that of the
    # value beside it; at raw = 0, too, where formulas with max and abs have none.
    raw = [-40.0, -1.5, 0.0, 0.4, 40.0]
    step = mp.mpf("1e-20")
    points = [mp.mpf(x) for x in raw]

    def value(x):
        return oracles.LINKS[type(link)](link, x)

    first = [(value(x + step) - value(x - step)) / (2 * step) for x in points]
    second = [(value(x + step) - 2 * value(x) + value(x - step)) / step**2 for x in points]
    raw = np.asarray(raw)
    derivatives = jax.jit(jax.vmap(jax.jacrev(link.value_and_slope)))(raw)
    for exact, derivative in zip((first, second), derivatives, strict=True):
        exact = np.array(exact, np.float64)
        np.testing.assert_allclose(derivative, exact, rtol=1e-11, atol=1e-13)

    # In a loop inside another function's rule, too: that is where the likelihoods use both.
    @jax.custom_jvp
    def function(raw):
        return jnp.sum(raw)

    @function.defjvp
    def _(primals, tangents):
        (raw,), (draw,) = primals, tangents

        def step(i, sums):
            return sums.at[i].set(sum(link.value_and_slope(raw[i])))

        sums = jax.lax.fori_loop(0, raw.size, step, jnp.zeros_like(raw))
        return function(raw), jnp.sum(sums * draw)

    slope = jax.jit(jax.grad(lambda raw: jnp.sum(jax.grad(function)(raw))))(raw)
    exact = np.array(first, np.float64) + np.array(second, np.float64)
    np.testing.assert_allclose(slope, exact, rtol=1e-11, atol=1e-13)


@every_link
def test_order_and_range_in_float32(link):
    raw = np.unique(np.concatenate([RAW, np.linspace(-20, 20, 400)]).astype(np.float32))
    value = np.asarray(map_of(link, raw))
    finite = np.isfinite(value)
    assert np.all(finite) or isinstance(link, links.Exp)
    lower, upper = link.range
    rounding = (
        4 * np.finfo(np.float32).eps * max(abs(x) for x in (lower, upper, 0.0) if abs(x) < 1e9)
    )
    assert np.all(np.diff(value[finite]) >= -rounding)
    middle = np.abs(raw) < 3
    assert np.all(np.diff(value[middle]) > 0)
    assert np.all(value >= lower - rounding)
    assert np.all(value <= upper + rounding)


@every_link
def test_second_derivative(link):
    # Includes raw = 0 and, for damped_exp, the point where its two regimes meet.
    raw = [-1.5, 0.0, 0.4, -0.5 * np.log(getattr(link, "reg", 1.0))]

    def value(x):
        return oracles.LINKS[type(link)](link, x)

    step = mp.mpf("1e-20")
    points = [mp.mpf(x) for x in raw]
    exact = [(value(x + step) - 2 * value(x) + value(x - step)) / step**2 for x in points]
    ways = jax.jit(lambda raw: [jax.vmap(jax.grad(d(link)))(raw) for d in (jax.grad, jax.jacfwd)])
    for second in ways(np.asarray(raw)):
        np.testing.assert_allclose(second, np.array(exact, np.float64), rtol=1e-11, atol=1e-13)


@every_link
@given(raw=st.floats(-6, 6))
def test_inverse(link, raw):
    value = map_of(link, np.float64(raw))
    np.testing.assert_allclose(inverse_of(link, value), raw, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("link", "raw"),
    [
        (links.Exp(), -80.0),
        (links.Softplus(), -80.0),
        (links.Softplus(), 1e4),
        (links.DampedExp(), -80.0),
        (links.Sigmoid(), -80.0),
    ],
    ids=repr,
)
def test_inverse_far_out_in_float32(link, raw):
    value = map_of(link, np.float32(raw))
    np.testing.assert_allclose(inverse_of(link, value), raw, rtol=1e-6)


@every_link
def test_inverse_outside_the_range_is_not_finite(link):
    lower, upper = link.range
    outside = [end for end in (lower - 0.1, lower, upper, upper + 0.1) if np.isfinite(end)]
    assert not np.any(np.isfinite(inverse_of(link, np.asarray([*outside, np.nan]))))


def test_damped_exp_is_exponential_below_and_saturates_above():
    link = links.DampedExp(reg=1e-4)
    for dtype in (jnp.float32, jnp.float64):
        np.testing.assert_allclose(link(dtype(-20.0)), np.exp(-20.0), rtol=1e-5)
        np.testing.assert_allclose(link(jnp.asarray([20.0, 1e4, np.inf], dtype)), 100.0, rtol=1e-5)
        assert jax.grad(link)(dtype(1e4)) == 0
    assert link.range == (0.0, 100.0)


@every_link
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_is_kept(link, dtype):
    raw = jax.ShapeDtypeStruct((3,), dtype)
    assert jax.eval_shape(link, raw).dtype == dtype
    assert jax.eval_shape(link.inverse, raw).dtype == dtype


# ------------------------------------------------------------------------------- configuration


@every_link
def test_config_survives_json(link):
    config = json.loads(json.dumps(links.to_config(link)))
    again = links.from_config(config)
    assert again == link
    assert hash(again) == hash(link)


def test_numpy_numbers_become_python_ones(user_errors):
    link = links.Bounded(np.float32(0.5), np.int64(2))
    assert [type(link.lower), type(link.upper)] == [float, int]
    assert json.loads(json.dumps(links.to_config(link)))["upper"] == 2
    assert link(jnp.zeros(1, jnp.float32)).dtype == jnp.float32
    assert links.Softplus(np.float64(0.5))(jnp.zeros(1, jnp.float32)).dtype == jnp.float32


def test_resolve():
    link = links.Softplus(floor=2.0)
    assert links.resolve(link) is link
    assert links.resolve("damped_exp") == links.DampedExp()
    assert {name: type(links.resolve(name)) for name in links.LINKS if name != "bounded"} == {
        name: kind for name, kind in links.LINKS.items() if name != "bounded"
    }


class _Unnamed(links.Identity):
    pass


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (
            lambda: links.resolve("relu"),
            ValueError,
            ["links.resolve: link", "'softplus'", "'relu'"],
        ),
        (
            lambda: links.resolve("bounded"),
            ValueError,
            ["'bounded'", "jaxmdn.heads.links.Bounded(...)"],
        ),
        (lambda: links.Softplus(floor=-1.0), ValueError, ["Softplus: floor", "[0, inf)", "-1.0"]),
        (lambda: links.Softplus(floor="a"), TypeError, ["Softplus: floor", "number", "str ('a')"]),
        (lambda: links.Softplus(floor=True), TypeError, ["Softplus: floor", "bool (True)"]),
        (lambda: links.DampedExp(reg=0.0), ValueError, ["DampedExp: reg", "(0, inf)", "0.0"]),
        (lambda: links.DampedExp(reg=np.nan), ValueError, ["DampedExp: reg", "got nan"]),
        (lambda: links.Bounded(2.0, 1.0), ValueError, ["Bounded: upper", "(2, inf)", "got 1.0"]),
        (lambda: links.Bounded(1.0, 1.0), ValueError, ["Bounded: upper", "(1, inf)", "got 1.0"]),
        (lambda: links.Bounded(-np.inf, 1.0), ValueError, ["Bounded: lower", "got -inf"]),
        (lambda: links.to_config(_Unnamed()), TypeError, ["links.to_config: _Unnamed", "LINKS"]),
        (
            lambda: links.from_config({"name": "relu"}),
            ValueError,
            ["links.from_config: name", "'exp'", "'relu'"],
        ),
    ],
)
def test_errors_say_what_to_do(call, error, parts, user_errors):
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
