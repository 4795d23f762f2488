"""What the numbers should be, by two routes that call nothing of the library.

``Dense`` evaluates a mixture of normals through dense covariances with SciPy, in float64. The
``exact_*`` functions carry a head's whole map, raw outputs to log-density, in 80-digit arithmetic:
there a density of ``exp(-1e18)`` is an ordinary number, so no logsumexp and no floor is needed.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from scipy import special, stats

from jaxmdn import CategoricalHead, ClassConditionalHead, Mixture, NormalHead
from jaxmdn.components import FullNormal, LowRankNormal, Normal
from jaxmdn.heads import links

COVARIANCES = ("isotropic", "diagonal", "full", "low_rank")

mp = mpmath.MPContext()
mp.dps = 80

# What each link says it computes, on one 80-digit number.
LINKS = {
    links.Identity: lambda link, x: x,
    links.Exp: lambda link, x: mp.exp(x),
    links.Softplus: lambda link, x: link.floor + mp.log1p(mp.exp(x)),
    links.DampedExp: lambda link, x: mp.exp(x) / mp.sqrt(1 + mp.mpf(link.reg) * mp.exp(2 * x)),
    links.Bounded: lambda link, x: (
        link.lower + (mp.mpf(link.upper) - link.lower) / (1 + mp.exp(-x))
    ),
    links.Sigmoid: lambda link, x: 1 / (1 + mp.exp(-x)),
    links.Tanh: lambda link, x: mp.tanh(x),
}


@dataclasses.dataclass
class Dense:
    """A mixture of normals: weights ``[..., M]``, loc ``[..., M, D]``, covariances."""

    weights: np.ndarray
    loc: np.ndarray
    covariances: np.ndarray

    def log_prob(self, y):
        lead = np.broadcast_shapes(self.weights.shape[:-1], np.shape(y)[:-1])
        M, D = self.loc.shape[-2:]
        weights = np.broadcast_to(self.weights, (*lead, M))
        loc = np.broadcast_to(self.loc, (*lead, M, D))
        covariances = np.broadcast_to(self.covariances, (*lead, M, D, D))
        y = np.broadcast_to(np.asarray(y, np.float64), (*lead, D))
        value = np.empty(lead)
        for row in np.ndindex(*lead):
            parts = [
                stats.multivariate_normal(m, c).logpdf(y[row])
                for m, c in zip(loc[row], covariances[row], strict=True)
            ]
            value[row] = special.logsumexp(parts, b=weights[row])
        return value

    def cdf(self, y):
        scale = np.sqrt(np.diagonal(self.covariances, axis1=-2, axis2=-1))
        parts = stats.norm.cdf(np.asarray(y, np.float64)[..., None, :], self.loc, scale)
        return np.sum(self.weights[..., None] * parts, axis=-2)

    def mean(self):
        return np.einsum("...k,...kd->...d", self.weights, self.loc)

    def covariance(self):
        # E[y y^T] - E[y] E[y]^T: not how the library does it, and exact enough for means of O(1).
        second = self.covariances + self.loc[..., :, None] * self.loc[..., None, :]
        mean = self.mean()
        return np.einsum("...k,...kij->...ij", self.weights, second) - (
            mean[..., :, None] * mean[..., None, :]
        )

    def row(self, *index):
        return Dense(self.weights[index], self.loc[index], self.covariances[index])


@dataclasses.dataclass
class Classes:
    """A categorical distribution with probabilities ``[..., C]``."""

    weights: np.ndarray

    def log_prob(self, y):
        label = np.asarray(y)[..., 0]
        weights = np.broadcast_to(self.weights, (*label.shape, self.weights.shape[-1]))
        return np.log(np.take_along_axis(weights, label[..., None], -1)[..., 0])


def _wide(array):
    array = np.asarray(array)
    return array if np.iscomplexobj(array) else array.astype(np.float64)


def _weights(logits):
    weights = np.exp(logits - np.max(logits.real, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def of_mixture(mixture):
    """Read a mixture's own parameters (a class-conditional one is flattened) into ``Dense``.

    Complex parameters are served, too: an imaginary step of 1e-30 is an exact derivative.
    """
    weights = _weights(_wide(mixture.logits))
    inner = mixture.components
    if isinstance(inner, Mixture):
        dense = of_mixture(inner)
        flat = (*dense.loc.shape[:-3], -1)
        D = dense.loc.shape[-1]
        return Dense(
            (weights[..., None] * dense.weights).reshape(flat),
            dense.loc.reshape(*flat, D),
            dense.covariances.reshape(*flat, D, D),
        )
    loc = _wide(inner.loc)
    D = loc.shape[-1]
    if isinstance(inner, FullNormal):
        whitening = _wide(inner.whitening_tril)
        covariances = np.linalg.inv(np.swapaxes(whitening, -1, -2) @ whitening)
    else:
        scale = np.broadcast_to(_wide(inner.scale), (*np.shape(inner.scale)[:-1], D))  # [..., K, D]
        covariances = scale[..., None] ** 2 * np.eye(D)
        if isinstance(inner, LowRankNormal):
            factor = _wide(inner.factor)
            covariances = covariances + factor @ np.swapaxes(factor, -1, -2)
    lead = np.broadcast_shapes(weights.shape, loc.shape[:-1], covariances.shape[:-2])
    return Dense(
        np.broadcast_to(weights, lead),
        np.broadcast_to(loc, (*lead, D)),
        np.broadcast_to(covariances, (*lead, D, D)),
    )


def layout(head):
    """Positions of a head's raw outputs by meaning, from the documented order of the blocks."""
    if isinstance(head, ClassConditionalHead):
        width, inner = head.head.num_outputs, layout(head.head)
        starts = head.num_classes + width * np.arange(head.num_classes)[:, None]
        shifted = {name: (starts + index).ravel() for name, index in inner.items()}
        return {**shifted, "logits": np.arange(head.num_classes)}
    K, D = head.num_components, head.event_dim
    shared = 1 if head.tied else K
    sizes = {"logits": K, "loc": K * D}
    sizes["scale"] = shared * (1 if head.covariance == "isotropic" else D)
    sizes["shape"] = {"full": shared * D * (D - 1) // 2, "low_rank": shared * D * head.rank}.get(
        head.covariance, 0
    )
    ends = np.cumsum(list(sizes.values()))
    return {
        name: np.arange(end - size, end)
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _softmax(logits, min_weight=0.0):
    powers = [mp.exp(logit) for logit in logits]
    total = sum(powers)
    share = 1 - len(powers) * mp.mpf(min_weight)
    return [mp.mpf(min_weight) + (share * power / total if total else 0) for power in powers]


def _components(head, raw):
    """``(weight, loc, Cholesky factor of the covariance)`` of each component, for one row."""
    if isinstance(head, ClassConditionalHead):
        count, width = head.num_classes, head.head.num_outputs
        inner = [raw[count + c * width : count + (c + 1) * width] for c in range(count)]
        return [
            (outer * weight, loc, factor)
            for outer, part in zip(_softmax(raw[:count]), inner, strict=True)
            for weight, loc, factor in _components(head.head, part)
        ]
    K, D = head.num_components, head.event_dim
    blocks = {name: [raw[i] for i in index] for name, index in layout(head).items()}
    link = LINKS[type(head.link)]
    scales = [mp.mpf(head.min_scale) + link(head.link, x) for x in blocks["scale"]]
    result = []
    for k, weight in enumerate(_softmax(blocks["logits"], head.min_weight)):
        shared = 0 if head.tied else k
        loc = blocks["loc"][k * D : (k + 1) * D]
        if head.covariance == "isotropic":
            scale = [scales[shared]] * D
        else:
            scale = scales[shared * D : (shared + 1) * D]
        size = len(blocks["shape"]) // (1 if head.tied else K)
        shape = blocks["shape"][shared * size : (shared + 1) * size]
        result.append((weight, loc, _factor(head, scale, shape)))
    return result


def _factor(head, scale, shape):
    D = len(scale)
    factor = [[scale[i] if i == j else mp.zero for j in range(D)] for i in range(D)]
    if head.covariance == "full":
        # y_i = loc_i - sum_j u_ij (y_j - loc_j) + scale_i noise_i: regress, one row after another.
        for i in range(D):
            row = shape[i * (i - 1) // 2 : i * (i + 1) // 2]
            for j in range(i):
                factor[i][j] = -sum(row[m] * factor[m][j] for m in range(j, i))
    elif head.covariance == "low_rank":
        r = head.rank
        rows = [shape[i * r : (i + 1) * r] for i in range(D)]
        dense = [[_dot(rows[i], rows[j]) for j in range(D)] for i in range(D)]
        for i in range(D):
            dense[i][i] += scale[i] ** 2
        for i in range(D):
            for j in range(i + 1):
                rest = dense[i][j] - _dot(factor[i][:j], factor[j][:j])
                factor[i][j] = mp.sqrt(rest) if i == j else rest / factor[j][j]
    return factor


def _dot(a, b):
    return sum((x * y for x, y in zip(a, b, strict=True)), mp.zero)


def parameters(head, raw):
    """``Dense`` (or ``Classes``) of raw outputs ``[..., P]``: the head's map, redone."""
    raw = _wide(raw)
    rows = raw.reshape(-1, raw.shape[-1])
    if isinstance(head, CategoricalHead):
        weights = [_softmax(list(map(mp.mpf, row)), head.min_weight) for row in rows]
        return Classes(np.array(weights, np.float64).reshape(raw.shape))
    parts = [_components(head, list(map(mp.mpf, row))) for row in rows]
    weights, loc, factor = (
        np.array([[component[i] for component in part] for part in parts]).astype(np.float64)
        for i in range(3)
    )
    covariances = factor @ np.swapaxes(factor, -1, -2)
    lead = raw.shape[:-1]
    return Dense(
        weights.reshape(*lead, *weights.shape[1:]),
        loc.reshape(*lead, *loc.shape[1:]),
        covariances.reshape(*lead, *covariances.shape[1:]),
    )


def _number(x):
    return x if isinstance(x, mp.mpf) else mp.mpf(float(x))


def exact_log_prob(head, raw, y):
    """``log p(y)`` for one row of raw outputs and one target, in 80 digits."""
    raw, y = [_number(x) for x in raw], [_number(x) for x in y]
    density = mp.zero
    for weight, loc, factor in _components(head, raw):
        z, log_det = [], mp.zero
        for i, row in enumerate(factor):
            z.append((y[i] - loc[i] - _dot(row[:i], z)) / row[i])
            log_det += mp.log(row[i])
        normalizer = len(y) * mp.log(2 * mp.pi) / 2
        density += weight * mp.exp(-_dot(z, z) / 2 - log_det - normalizer)
    return mp.log(density) if density else -mp.inf


def exact_gradient(head, raw, y):
    """Gradients of ``log p(y)`` in ``raw`` and ``y``, by central differences of step 1e-25."""
    point = [_number(x) for x in (*raw, *y)]
    step, gradient = mp.mpf("1e-25"), []
    for i, x in enumerate(point):
        if not mp.isfinite(x):  # a logit of -inf stays -inf: no slope
            gradient.append(0.0)
            continue
        above, below = list(point), list(point)
        above[i], below[i] = x + step, x - step
        split = len(raw)
        rise = exact_log_prob(head, above[:split], above[split:]) - exact_log_prob(
            head, below[:split], below[split:]
        )
        gradient.append(float(rise / (2 * step)))
    return np.array(gradient[: len(raw)]), np.array(gradient[len(raw) :])


def exact_derivatives(head, point, direction, label):
    """First and second derivative of ``log p(y)`` along a direction, by central differences.

    The point holds the raw outputs and then ``y`` (a class index comes as ``label`` instead).
    """
    split, step = head.num_outputs, mp.mpf("1e-25")
    values = []
    for sign in (-1, 0, 1):
        moved = [
            _number(x) + sign * step * _number(v) for x, v in zip(point, direction, strict=True)
        ]
        if isinstance(head, CategoricalHead):
            weights = _softmax(moved, head.min_weight)
            values.append(mp.log(weights[int(label[0])]))
        else:
            values.append(exact_log_prob(head, moved[:split], moved[split:]))
    below, here, above = values
    return float((above - below) / (2 * step)), float((above - 2 * here + below) / step**2)


def random_raw(rng, head, batch, dtype=jnp.float64):
    """Raw outputs of O(1)."""
    return jnp.asarray(rng.normal(size=(*batch, head.num_outputs)), dtype)


def random_target(rng, head, batch, dtype=jnp.float64):
    """Targets of O(1), or class indices."""
    if isinstance(head, CategoricalHead):
        return jnp.asarray(rng.integers(head.num_classes, size=(*batch, 1)))
    return jnp.asarray(rng.normal(size=(*batch, head.event_dim)), dtype)


def random_mixture(rng, covariance, K, D, batch=(), *, tied=False, dtype=jnp.float64):
    """A mixture with random parameters; some leading axes of some parameters have size one."""

    def draw(*event, sampler=rng.normal):
        lead = tuple(size if rng.random() < 0.7 else 1 for size in batch)
        return sampler(size=(*lead, *event))

    def positive(size):
        return np.exp(0.5 * rng.normal(size=size))

    shared = 1 if tied else K
    logits, loc = draw(K), draw(K, D)
    if covariance == "full":
        diagonal = draw(shared, D, sampler=positive)[..., None] * np.eye(D)
        components = FullNormal(loc=loc, whitening_tril=np.tril(draw(shared, D, D), -1) + diagonal)
    elif covariance == "low_rank":
        rank = int(rng.integers(1, D + 1))
        scale = draw(shared, D, sampler=positive)
        components = LowRankNormal(loc=loc, factor=draw(shared, D, rank), scale=scale)
    else:
        width = 1 if covariance == "isotropic" else D
        components = Normal(loc=loc, scale=draw(shared, width, sampler=positive))
    mixture = Mixture(logits=logits, components=components)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), mixture)


def head_of(covariance, K, D, **options):
    """A ``NormalHead``; low rank takes as many factors as two, or ``D``."""
    return NormalHead(K, D, covariance=covariance, rank=min(2, D), **options)
