"""Bisections and bracketed Newton steps: against the numbers that they look for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmdn.special.roots import bisect, close_in, first_whole, halfway


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 2**24), (np.float64, 2**40)])
def test_the_first_whole_number_is_found(dtype, most):
    rng = np.random.default_rng(0)
    goal = np.concatenate([np.arange(40), np.floor(np.exp(rng.uniform(0, np.log(most), 400)))])
    goal = goal.astype(dtype)
    reach = np.exp(rng.uniform(0, 8, len(goal)))
    upper = np.minimum(np.ceil(goal * reach + 1), most).astype(dtype)
    found = jax.jit(
        lambda goal, upper: first_whole(lambda k: k >= goal, jnp.full_like(upper, -1), upper)
    )
    np.testing.assert_array_equal(found(jnp.asarray(goal), jnp.asarray(upper)), goal)


def test_nothing_moves_at_the_end_of_the_road():
    # An accepted number may not be looked for at the lower end, which is not in the interval.
    ends = jnp.array([3.0]), jnp.array([4.0])
    low, high = bisect(
        lambda y: y >= 0, *ends, steps=60, middle=lambda a, b: jnp.floor(halfway(a, b))
    )
    assert (low[0], high[0]) == (3, 4)


def test_a_root_to_the_last_place():
    goal = jnp.array([1e-3, 0.3, 0.99])
    low, high = bisect(lambda y: y**3 >= goal, jnp.zeros(3), jnp.ones(3), steps=60)
    np.testing.assert_allclose(halfway(low, high), np.cbrt(goal), rtol=1e-15)


@pytest.mark.parametrize("many", [False, True])
def test_newtons_steps_close_in_on_what_lies_between_the_ends(many):
    """Flat and steep cubes, roots at an end, beyond it, no room, NaN; also the few rows alone."""
    rng = np.random.default_rng(0)
    goal = np.concatenate([rng.uniform(-1, 1, 44), [0.0, 1.0, -1.0, 0.3, np.nan]])
    lower, upper = np.full(49, -1.0), np.full(49, 1.0)
    lower[47] = upper[47] = 0.5  # no room, and the root is elsewhere
    goal[43] = 2.0  # beyond the upper end

    def function(goal):
        return lambda x: (x**3 - goal, 3 * x * x, x + 1)

    @jax.jit
    def solve(goal, lower, upper):
        own = {"some": lambda index: function(goal[index])} if many else {}
        start = jnp.full_like(goal, 0.1)
        return close_in(function(goal), lower, upper, start, steps=60, **own)

    root, extra = solve(*map(jnp.asarray, (goal, lower, upper)))
    expected = np.cbrt(goal)
    expected[43], expected[47] = 1.0, 0.5
    # Values within rounding are enough: at zero that is a cube of 2e-16.
    np.testing.assert_allclose(root**3, expected**3, atol=3e-16)
    np.testing.assert_allclose(extra[:48], root[:48] + 1, rtol=1e-15)
