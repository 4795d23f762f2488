"""Families whose dimensions are independent: what follows from one dimension, for all of them.

A subclass says what happens in one dimension (``marginal_log_prob``, ``cdf``, ``quantile``,
moments, a sampler), elementwise; the joint density, the covariance, marginals and conditionals
follow. Any parameter may have size one for the dimensions (shared by all of them), for the
components (tied), or for both.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes, numerics
from jaxmdn.components.base import Density, UndefinedError, others
from jaxmdn.special import unimodal
from jaxmdn.special.roots import halfway, invert_tail
from jaxmdn.special.sides import nearer_side
from jaxmdn.typing import Array, Bool, Float, Key, Num

UnivariateT = TypeVar("UnivariateT", bound="Univariate")

# Evaluations of a tail for a quantile without a formula, from a bracket that doubling has found.
STEPS, DOUBLINGS = 40, 60


class Univariate(Density):
    """Base of the families ``p(y) = prod_d p_d(y_d)`` with parameters ``[..., K, D]``.

    To write one, decorate a subclass with ``@family``, declare the parameters (``real()``,
    ``positive()``, ...) and ``domain``, and write ``marginal_log_prob``. All else has a default:
    ``cdf`` and ``survival``, ``mean`` and ``variance`` by quadrature for a unimodal density,
    ``quantile`` by inversion, ``sample`` by the quantile of a uniform number. What has a formula is
    faster by it: write what there is. ``from_moments`` lets a head start from the data, ``affine``
    (with ``closed_under`` in ``domain``) lets ``fit`` standardise.
    """

    @property
    def event_dim(self) -> int:
        return max(getattr(self, name).shape[-1] for name, rank in self.event_ranks.items() if rank)

    def marginal_log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Log-density of each dimension at ``y``, ``[..., D]``."""
        raise UndefinedError(f"{type(self).__name__} must define marginal_log_prob.")

    def log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        return jnp.sum(self.marginal_log_prob(y), axis=-1)  # [..., D] -> [...]

    def cdf(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """``P(Y_d <= y_d)``; by quadrature, if the family has no formula."""
        return self._tails(y)[0]

    def survival(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """``P(Y_d > y_d)``; by quadrature, if the family has no formula."""
        return self._tails(y)[1]

    def tail(self, y: Num[Array, "..."], upper: Bool[Array, "..."]) -> Float[Array, "..."]:
        """``survival(y)`` where ``upper``, else ``cdf(y)``."""
        inherited = Univariate.cdf, Univariate.survival
        written = (type(self).cdf, type(self).survival) != inherited
        below, above = (self.cdf(y), self.survival(y)) if written else self._tails(y)
        return jnp.where(upper, above, below)

    def log_cdf(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Logarithm of the distribution function."""
        written = type(self).cdf is not Univariate.cdf
        return jnp.log(self.cdf(y)) if written else self._log_tails(y)[0]

    def log_survival(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Logarithm of the survival function."""
        written = type(self).survival is not Univariate.survival
        return jnp.log(self.survival(y)) if written else self._log_tails(y)[1]

    def jump(self, y: Num[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """``P(Y_d < y_d)`` and ``P(Y_d = y_d)``, ``y`` in the compute dtype."""
        at_most = self.cdf(y)
        below = self.cdf(self.domain.before(y)) if any(self.jumps) else at_most
        return below, at_most - below

    def quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        """The ``y`` with ``P(Y_d <= y) = p``; the support's ends at 0 and 1, NaN outside."""
        return self.tail_quantile(p, jnp.zeros((), bool))

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """The ``y`` with ``tail(y, upper) = q``; the support's ends at 0 and 1, NaN outside."""
        member, q = numerics.upcast_tree(self, q)
        inside = (q > 0) & (q < 1)
        y = _quantile(member, jnp.where(inside, q, 0.5), upper)
        last = jnp.logical_xor(q == 1, upper)
        ends = jnp.where(last, self.domain.upper, self.domain.lower)
        ends = jnp.where((q == 0) | (q == 1), ends, jnp.nan)
        return jnp.where(inside, y, ends.astype(y.dtype))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Num[Array, "..."]:
        dtype = numerics.compute_dtype(jnp.zeros((), self.dtype))
        full = (*shape, *self.batch_shape, self.event_dim)
        return self.drawn(self.quantile(numerics.uniform(key, full, dtype)))

    def drawn(self, y: Num[Array, "..."]) -> Num[Array, "..."]:
        """Draws in the parameters' dtype: of a continuum, none rounds to an end of it.

        There a density may be infinite or zero; the nearest number inside stands for the end.
        """
        y = y.astype(self.dtype)
        return y if self.domain.discrete else jnp.clip(y, *self.domain.interior(self.dtype))

    def mean(self) -> Float[Array, "..."]:
        """Mean, ``batch_shape + [D]``; by quadrature, if the family has no formula."""
        (member,) = numerics.upcast_tree(self)
        start = member._start()  # from it, so that a large location costs no digits
        return self._fill(start + self._expect(lambda y: y - start))

    def variance(self) -> Float[Array, "..."]:
        """Per-dimension variance, ``batch_shape + [D]``."""
        mean = self.mean().astype(numerics.compute_dtype(jnp.zeros((), self.dtype)))
        return self._fill(self._expect(lambda y: (y - mean) ** 2))

    def covariance(self) -> Float[Array, "..."]:
        """Covariance matrix, ``batch_shape + [D, D]``."""
        # Selected, not multiplied: the variance may be infinite.
        variance = self.variance()
        diagonal = jnp.eye(self.event_dim, dtype=bool)
        return jnp.where(diagonal, variance[..., None], jnp.zeros((), variance.dtype))

    @classmethod
    def from_moments(
        cls: type[UnivariateT],
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        **constants: Any,
    ) -> UnivariateT:
        """The member with these moments ``[..., K, D]``, or the nearest that the family has.

        ``constants`` fix what two moments leave open (degrees of freedom, bounds). Finite for every
        finite mean inside the support and every positive variance.
        """
        raise UndefinedError(f"from_moments: not defined for {cls.__name__}.")

    def affine(self, shift: Float[Array, "... D"], scale: Float[Array, "#D"]) -> Any:
        """The density of ``shift + scale * y`` (elementwise), by what ``closed_under`` allows."""
        raise UndefinedError(
            f"affine: {type(self).__name__} does not stay in its family under a change of unit."
        )

    def marginals(self: UnivariateT) -> UnivariateT:
        """The density whose dimensions are independent and have this one's marginals."""
        return self

    def innovations(self: UnivariateT, y: Array) -> tuple[UnivariateT, Array, None]:
        """What each dimension adds to those before it; see ``FullNormal.innovations``."""
        return self, y, None

    def marginal(self: UnivariateT, dims: tuple[int, ...]) -> UnivariateT:
        """The density of the dimensions ``dims``, in that order."""

        def pick(parameter: Array, rank: int) -> Array:
            axis = parameter.ndim - rank
            shared = rank == 0 or parameter.shape[axis] == 1  # by all, or the only one there is
            return parameter if shared else jnp.take(parameter, np.array(dims), axis=axis)

        return self.map_parameters(pick)

    def condition(
        self: UnivariateT, dims: tuple[int, ...], values: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], UnivariateT]:
        """Log-density of the dimensions ``dims`` at ``values``, and the density of the others."""
        rest = self.marginal(others(dims, self.event_dim))
        return self.marginal(dims).log_prob(values), rest

    def _fill(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """Broadcast per-dimension values to ``batch_shape + [D]``, in the parameters' dtype."""
        return jnp.broadcast_to(values, (*self.batch_shape, self.event_dim)).astype(self.dtype)

    def _parameters(self, *arrays: Array) -> tuple[Array, ...]:
        """Every parameter, in the order of the fields, and arrays, in the compute dtype."""
        return numerics.upcast(*(getattr(self, name) for name in self.event_ranks), *arrays)

    def _require_continuum(self, what: str) -> None:
        if self.domain.discrete or self.domain.atoms:
            raise UndefinedError(
                f"{what}: {type(self).__name__} must define it: only a continuum has a default."
            )

    def _start(self) -> Float[Array, "..."]:
        """A point of the support: the location, if there is one, else its middle."""
        if np.isfinite(self.domain.lower) or np.isfinite(self.domain.upper):
            return jnp.asarray(self.domain.inside, self.dtype)
        return getattr(self, "loc", jnp.zeros((), self.dtype))

    def place(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Roughly where the density is: centre and width, broadcasting against ``[..., K, D]``.

        In the coordinate of ``special.unimodal`` (for whole numbers, of their distance from one
        step below the first), so that a quadrature knows where to begin. By the moments, if the
        family has formulas for them, else by the maximum and how fast the density falls.
        """
        (member,) = numerics.upcast_tree(self)
        lower, upper = self.domain.lower - self.domain.step, self.domain.upper
        kind = type(self)
        if kind.mean is not Univariate.mean and kind.variance is not Univariate.variance:
            variance = member.variance() + self.domain.step**2
            centre, width = unimodal.place(member.mean(), variance, lower, upper)
            return getattr(member, "loc", centre) if self.domain.kind == "real" else centre, width
        start = jnp.broadcast_to(member._start(), (*self.batch_shape, self.event_dim))
        shape = unimodal.shape_of(member.marginal_log_prob, start, lower, upper)
        return shape.origin, jnp.sqrt(shape.width[-1.0] * shape.width[1.0])

    def continued(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """The log-density; of counts also between whole numbers, as the formula has it there."""
        return self.marginal_log_prob(y)

    def in_coordinate(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """The log-density of the coordinate of ``place``, where a formula has fewer logarithms."""
        forward, _, slope = unimodal.coordinate(
            self.domain.lower - self.domain.step, self.domain.upper
        )
        return self.continued(forward(t)) + slope(t)

    def _log_tails(self, y: Num[Array, "..."]) -> tuple[Array, Array]:
        self._require_continuum("cdf")
        member, y = numerics.upcast_tree(self, y)
        lower, upper = self.domain.lower, self.domain.upper
        shape = jnp.broadcast_shapes(y.shape, (*self.batch_shape, self.event_dim))
        start = jnp.broadcast_to(member._start(), shape)
        inside = (y > lower) & (y < upper)
        safe = jnp.broadcast_to(jnp.where(inside, y, start), shape)
        return self._with_ends(y, inside, _log_tails(member, safe, start), -jnp.inf, 0.0)

    def _tails(self, y: Num[Array, "..."]) -> tuple[Array, Array]:
        below, above = self._log_tails(y)
        return jnp.exp(below), jnp.exp(above)

    def _with_ends(
        self, y: Array, inside: Array, tails: tuple[Array, Array], least: float, most: float
    ) -> tuple[Array, Array]:
        """Both tails, which outside are ``least`` and ``most``; NaN at NaN."""
        left, nan = y <= self.domain.lower, jnp.isnan(y)

        def complete(value: Array, at_left: float, at_right: float) -> Array:
            outside = jnp.where(nan, jnp.nan, jnp.where(left, at_left, at_right))
            return jnp.where(inside, value, outside.astype(value.dtype))

        return complete(tails[0], least, most), complete(tails[1], most, least)

    def _expect(self, function: Any) -> Float[Array, "..."]:
        """``E[function(Y_d)]`` by quadrature."""
        self._require_continuum("moments")
        (member,) = numerics.upcast_tree(self)
        start = jnp.broadcast_to(member._start(), (*self.batch_shape, self.event_dim))
        domain = self.domain
        return unimodal.expect(
            function, member.marginal_log_prob, start, domain.lower, domain.upper
        )

    def inner_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """``tail_quantile`` for ``0 < q < 1``, in the compute dtype; no derivatives are used.

        By Newton's method on the smaller tail, in a bracket that doubling steps have found.
        """
        self._require_continuum("quantile")
        forward, back, _ = unimodal.coordinate(self.domain.lower, self.domain.upper)
        shape = jnp.broadcast_shapes(q.shape, upper.shape, (*self.batch_shape, self.event_dim))
        near, upper = nearer_side(jnp.broadcast_to(q, shape), upper)
        start = jnp.broadcast_to(back(self._start().astype(q.dtype)), shape)

        def tail(t: Array) -> Array:
            return self.tail(forward(t), upper)

        def widen(_: Any, ends: tuple[Array, ...]) -> tuple[Array, ...]:
            low, high, step = ends
            # The tail falls where it is the upper one.
            below, above = (tail(end) > near for end in (low, high))
            low = jnp.where(below != upper, low - step, low)
            high = jnp.where(above == upper, high + step, high)
            return low, high, 2 * step

        ends = (start, start, jnp.ones_like(start))
        low, high, _ = meshes.fori_loop(0, DOUBLINGS, widen, ends)
        middle = halfway(low, high)
        root = invert_tail(tail, near, upper, middle, low, high, split=halfway, steps=STEPS)
        return forward(root)


def _by_quadrature(family: Univariate, y: Array, start: Array) -> tuple[tuple, tuple]:
    ends = family.domain.lower, family.domain.upper
    near, rest, ratio, above = unimodal.log_tails(family.marginal_log_prob, y, start, *ends)
    return (jnp.where(above, rest, near), jnp.where(above, near, rest)), (near, ratio)


@jax.custom_jvp
def _log_tails(family: Univariate, y: Array, start: Array) -> tuple[Array, Array]:
    return _by_quadrature(family, y, start)[0]


@_log_tails.defjvp
@meshes.any_rank
def _log_tails_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    # In y the derivative is the density over the tail, not that of a sum over nodes.
    (family, y, start), (dfamily, dy, _) = primals, tangents
    logs, moved, (near, ratio) = jax.jvp(
        lambda family: _by_quadrature(family, y, start), (family,), (dfamily,), has_aux=True
    )
    _, back, slope = unimodal.coordinate(family.domain.lower, family.domain.upper)
    reached = near > -jnp.inf
    step = jnp.where(reached, jnp.exp(-ratio - slope(back(y))), 0) * dy
    safe = jnp.where(reached, near, 0)
    below, above = (step * jnp.exp(jnp.where(reached, safe - log, 0)) for log in logs)
    return logs, (moved[0] + below, moved[1] - above)


@jax.custom_jvp
def _quantile(family: Univariate, q: Array, upper: Array) -> Array:
    return family.inner_quantile(q, upper)


@_quantile.defjvp
@meshes.any_rank
def _quantile_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # F(y; theta) = q for all theta; zero where the quantile has rounded to where there is no slope.
    (family, q, upper), (dfamily, dq, _) = primals, tangents
    y = _quantile(family, q, upper)
    side = nearer_side(q, upper)[1]  # whose derivative does not cancel
    _, dtail = jax.jvp(lambda family: family.tail(y, side), (family,), (dfamily,))
    density = jnp.exp(family.marginal_log_prob(y))
    sloped = (density > 0) & (density < jnp.inf)
    missing = jnp.where(upper, -dq, dq) + jnp.where(side, dtail, -dtail)
    return y, jnp.where(sloped, missing / jnp.where(sloped, density, 1), 0)
