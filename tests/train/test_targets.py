"""Targets that a family cannot hold, in ``fit``: which row, and which family serves."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import questions

import jaxmdn
from jaxmdn.train.targets import check_targets

HEADS = {name: head for name, head in questions.heads().items() if name not in ("classes",)}
ADVICE = {"positive": "'hurdle'", "interval": "'truncated_normal'", "circle": "deg2rad"}


def points(own):
    """Values on the edges of a support, inside, and outside; where they may be, they are finite."""
    ends = [end for end in (own.lower, own.upper) if math.isfinite(end)]
    return [own.inside, *ends, *own.atoms, *(end + side for end in ends for side in (-1.0, 1.0))]


@functools.partial(jax.jit, static_argnums=0)
def found(names, y):
    """At each point whether it is in the support, and the log-density, for all heads at once."""
    result = {}
    for name in names:
        head = HEADS[name]
        density = head(jnp.zeros((*y[name].shape[:-1], head.num_outputs)))
        result[name] = head.in_support(y[name]), jaxmdn.log_prob(density, y[name])
    return result


def test_a_density_is_finite_exactly_where_the_support_says():
    names = tuple(name for name, head in HEADS.items() if head.event_dim == 1)
    y = {n: np.array(points(HEADS[n].support[0]) + [1e9] * 8)[:8, None] for n in names}
    for name in ("categorical",):
        y[name] = y[name].astype(np.int64)
    for name, (inside, log_prob) in found(names, y).items():
        inside, finite = np.asarray(inside)[:, 0], np.isfinite(np.asarray(log_prob))
        assert finite[inside].all(), (name, y[name][inside & ~finite])
        edge = np.isin(y[name][:, 0], (HEADS[name].support[0].lower, HEADS[name].support[0].upper))
        assert not finite[~inside & ~edge].any(), (name, y[name][~inside & finite])


@pytest.mark.parametrize("name", [n for n in HEADS if n not in ("categorical",)])
def test_the_row_is_named_and_what_serves_it(name, user_errors):
    head = HEADS[name]
    y = np.array([[own.inside for own in head.support]] * 5)
    check_targets(head, y)
    own = head.support[0]
    y[3, 0] = 200.0 if own.kind == "circle" else own.lower
    if own.kind == "real" or own.step or own.closed or own.atoms:
        y[3, 0] = np.finfo(np.float64).max if own.kind == "real" else -1e4
    if own.kind == "real":
        with jax.enable_x64(False), pytest.raises(ValueError, match=r"row 3: .* largest float"):
            check_targets(head, y)
        return
    with pytest.raises(ValueError, match="row 3: column 0 is ") as caught:
        check_targets(head, y)
    if not (own.step or own.closed or own.atoms):
        assert ADVICE[own.kind] in str(caught.value)
