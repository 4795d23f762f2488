"""One density, as the users of each JAX library write it.

Every class turns raw outputs into log-densities and samples; values, gradients and the output layer
around them are the same for all and stand in ``contenders``. ``PlainJax`` is the textbook formula,
to be differentiated automatically. Scalar targets go in as scalars where a library has a scalar
normal, since that is both natural and faster.
"""

from __future__ import annotations

import abc
import importlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case


class JaxDensity(abc.ABC):
    """Log-density and sampling of the mixture a case stands for.

    Attributes:
      name: what tables call it.
      module: what must be importable, and ``package``, whose version is recorded.
      parameterization: of full covariances (see ``problem``).
    """

    name: ClassVar[str]
    module: ClassVar[str] = "jax"
    package: ClassVar[str] = "jax"
    parameterization: ClassVar[str] = "scale_tril"
    operations: ClassVar[tuple[str, ...]] = ("log_prob", "nll_gradient", "sample")

    def load(self) -> None:
        """Import what is needed; raises if that is impossible."""
        importlib.import_module(self.module)

    @abc.abstractmethod
    def distribution(self, case: Case, raw: Any) -> Any:
        """The library's own distribution with batch shape ``[N]``."""

    def log_prob(self, case: Case, raw: Any, y: Any) -> Any:
        """Log-densities ``[N]``, nats."""
        return self.distribution(case, raw).log_prob(y[:, 0] if case.dim == 1 else y)

    def sample(self, case: Case, raw: Any, key: Any) -> Any:
        """Samples ``[draws, N, D]``, or ``[draws, N]`` of scalars."""
        return self.distribution(case, raw).sample(seed=key, sample_shape=(case.draws,))


def split(case: Case, raw: Any) -> tuple[Any, ...]:
    """Logits ``[N, K]``, loc ``[N, K, D]``, raw scale ``[N, K, D]``, lower ``[N, K, T]`` or None.

    Works on arrays of any library.
    """
    rows, K, D = raw.shape[0], case.components, case.dim
    logits, loc = raw[:, :K], raw[:, K : K + K * D].reshape(rows, K, D)
    scale = raw[:, K + K * D : K + 2 * K * D].reshape(rows, K, D)
    lower = raw[:, K + 2 * K * D :].reshape(rows, K, -1) if case.covariance == "full" else None
    return logits, loc, scale, lower


def _scale(case: Case, raw_scale: Any) -> Any:
    if case.link == "exp":
        return jnp.exp(raw_scale)
    return case.head.min_scale + jax.nn.softplus(raw_scale)


def _fill_lower(lower: Any, dim: int) -> Any:
    rows, columns = np.tril_indices(dim, -1)
    empty = jnp.zeros((*lower.shape[:-1], dim, dim), lower.dtype)
    return empty.at[..., rows, columns].set(lower)


def parameters(case: Case, raw: Any) -> tuple[Any, Any, Any, Any]:
    """Logits, loc, scale and, for full covariance, the covariance's Cholesky factor."""
    logits, loc, raw_scale, lower = split(case, raw)
    scale = _scale(case, raw_scale)
    if lower is None:
        if case.dim == 1:
            return logits, loc[..., 0], scale[..., 0], None
        return logits, loc, scale, None
    diagonal = scale[..., None] * jnp.eye(case.dim, dtype=scale.dtype)
    return logits, loc, scale, _fill_lower(lower, case.dim) + diagonal


class PlainJax(JaxDensity):
    """The textbook formula, with ``logsumexp`` and ``log_softmax``."""

    name = "plain JAX"
    parameterization = "whitening"
    operations = ("log_prob", "nll", "nll_gradient", "linear_nll", "linear_nll_gradient")

    def distribution(self, case: Case, raw: Any) -> Any:
        raise NotImplementedError("plain JAX has formulas only")

    def log_prob(self, case: Case, raw: Any, y: Any) -> Any:
        raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
        logits, loc, raw_scale, lower = split(case, raw)
        if case.dim == 1:  # scalars, as anyone would write it: [N, K] throughout
            loc, raw_scale, deviation = loc[..., 0], raw_scale[..., 0], y - loc[..., 0]
        else:
            deviation = y[:, None, :] - loc
        if lower is not None:
            whitening = _fill_lower(lower, case.dim) + jnp.eye(case.dim, dtype=raw.dtype)
            deviation = jnp.einsum("nkij,nkj->nki", whitening, deviation)
        if case.link == "exp":
            log_scale, z = raw_scale, deviation * jnp.exp(-raw_scale)
        else:
            scale = _scale(case, raw_scale)
            log_scale, z = jnp.log(scale), deviation / scale
        axes = () if case.dim == 1 else (-1,)
        normal = -0.5 * jnp.sum(z**2 + float(np.log(2 * np.pi)), axis=axes)
        component = normal - jnp.sum(log_scale, axis=axes)  # [N, K]
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + component, axis=-1)


class Distrax(JaxDensity):
    """``distrax.MixtureSameFamily``."""

    name = module = package = "distrax"

    def distribution(self, case: Case, raw: Any) -> Any:
        distrax = importlib.import_module("distrax")
        logits, loc, scale, tril = parameters(case, raw)
        if tril is not None:
            components = distrax.MultivariateNormalTri(loc, tril)
        elif case.dim == 1:
            components = distrax.Normal(loc, scale)
        else:
            components = distrax.MultivariateNormalDiag(loc, scale)
        return distrax.MixtureSameFamily(distrax.Categorical(logits=logits), components)


class Tfp(JaxDensity):
    """``MixtureSameFamily`` of TensorFlow Probability's JAX substrate."""

    name = "TFP"
    module = "tensorflow_probability.substrates.jax"
    package = "tfp-nightly"

    def distribution(self, case: Case, raw: Any) -> Any:
        tfd = importlib.import_module(self.module).distributions
        logits, loc, scale, tril = parameters(case, raw)
        if tril is not None:
            components = tfd.MultivariateNormalTriL(loc, tril)
        elif case.dim == 1:
            components = tfd.Normal(loc, scale)
        else:
            components = tfd.MultivariateNormalDiag(loc, scale)
        return tfd.MixtureSameFamily(tfd.Categorical(logits=logits), components)


class Numpyro(JaxDensity):
    """``numpyro.distributions.MixtureSameFamily``."""

    name = module = package = "numpyro"

    def distribution(self, case: Case, raw: Any) -> Any:
        dist = importlib.import_module("numpyro.distributions")
        logits, loc, scale, tril = parameters(case, raw)
        if tril is not None:
            components = dist.MultivariateNormal(loc, scale_tril=tril)
        elif case.dim == 1:
            components = dist.Normal(loc, scale)
        else:
            components = dist.Normal(loc, scale).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)

    def sample(self, case: Case, raw: Any, key: Any) -> Any:
        return self.distribution(case, raw).sample(key, (case.draws,))
