"""One density, as the users of each library write it.

Every class turns raw outputs into log-densities and samples and prepares an operation made of them.
Scalar targets go in as scalars where a library has a scalar normal, since that is both natural and
faster. On a GPU torch must see one too, or it does not take part; it is given as many threads as
the process has cores.

A full covariance is written by its own Cholesky factor (``"scale_tril"``) or by that factor's
inverse (``"whitening"``), whichever a library is made for: see ``problem``.
"""

from __future__ import annotations

import importlib
import math
import os
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case
from jaxmdn import meshes
from jaxmdn.cli.timing import Runner, jax_runner


def split(case: Case, raw: Any) -> tuple[Any, ...]:
    """Logits ``[N, K]``, loc ``[N, K, D]``, raw scale ``[N, K, D]``, lower ``[N, K, T]`` or None.

    Works on arrays of any library.
    """
    rows, K, D = raw.shape[0], case.components, case.dim
    logits, loc = raw[:, :K], raw[:, K : K + K * D].reshape(rows, K, D)
    scale = raw[:, K + K * D : K + 2 * K * D].reshape(rows, K, D)
    lower = raw[:, K + 2 * K * D :].reshape(rows, K, -1) if case.covariance == "full" else None
    return logits, loc, scale, lower


def _fill_jax(lower: Any, diagonal: Any) -> Any:
    """Triangular matrices from the numbers below the diagonal and those on it."""
    empty = jnp.zeros((*lower.shape[:-1], *(2 * diagonal.shape[-1:])), lower.dtype)
    below = empty.at[(..., *np.tril_indices(diagonal.shape[-1], -1))].set(lower)
    return below + diagonal[..., None] * jnp.eye(diagonal.shape[-1], dtype=lower.dtype)


#: What the formulas are made of, by library.
JAX = SimpleNamespace(
    exp=jnp.exp, log=jnp.log, einsum=jnp.einsum, ones_like=jnp.ones_like, fill=_fill_jax,
    softplus=jax.nn.softplus, log_softmax=jax.nn.log_softmax, logsumexp=jax.nn.logsumexp,
)  # fmt: skip


def _torch_namespace(torch: Any) -> SimpleNamespace:
    def fill(lower: Any, diagonal: Any) -> Any:
        matrices, size = torch.diag_embed(diagonal), diagonal.shape[-1]
        rows, columns = torch.tril_indices(size, size, -1, device=diagonal.device)
        matrices[..., rows, columns] = lower
        return matrices

    return SimpleNamespace(
        exp=torch.exp, log=torch.log, einsum=torch.einsum, ones_like=torch.ones_like, fill=fill,
        softplus=torch.nn.functional.softplus, log_softmax=lambda x: torch.log_softmax(x, -1),
        logsumexp=torch.logsumexp,
    )  # fmt: skip


def scale_of(xp: Any, case: Case, raw_scale: Any) -> Any:
    """Scales as the case's head has them."""
    if case.link == "exp":
        return xp.exp(raw_scale)
    return case.head.min_scale + xp.softplus(raw_scale)


def textbook(xp: Any, case: Case, raw: Any, y: Any) -> Any:
    """Log-densities ``[N]`` by the formula of a textbook, with ``logsumexp`` and ``log_softmax``.

    ``log sum_k w_k prod_d N(z_kd; 0, 1) / scale_kd``, ``z = U (y - loc) / scale``, U unit lower
    triangular, or the identity.
    """
    logits, loc, raw_scale, lower = split(case, raw)
    if case.dim == 1:  # scalars, as anyone would write it: [N, K] throughout
        loc, raw_scale, deviation = loc[..., 0], raw_scale[..., 0], y - loc[..., 0]
    else:
        deviation = y[:, None, :] - loc
    if lower is not None:
        unit = xp.fill(lower, xp.ones_like(raw_scale))
        deviation = xp.einsum("nkij,nkj->nki", unit, deviation)
    if case.link == "exp":
        log_scale, z = raw_scale, deviation * xp.exp(-raw_scale)
    else:
        scale = scale_of(xp, case, raw_scale)
        log_scale, z = xp.log(scale), deviation / scale
    normal = -0.5 * (z**2 + math.log(2 * math.pi)) - log_scale
    component = normal if case.dim == 1 else normal.sum(-1)  # [N, K]
    return xp.logsumexp(xp.log_softmax(logits) + component, -1)


def loss_runner(case: Case, loss: Callable[..., Any], arguments: tuple[Any, ...]) -> Runner:
    """A loss, or its value and gradient with respect to everything but the targets."""
    if case.gradient:
        loss = jax.value_and_grad(loss, argnums=tuple(range(len(arguments) - 1)))
    return jax_runner(loss, *arguments)


class Library:
    """A JAX library's ``MixtureSameFamily``.

    Args:
      name: what tables call it.
      module: what must be importable; ``package``: whose version is recorded.
      diagonal, full: components from the library, ``loc`` and ``scale`` or the Cholesky factor.
      draw: samples from a distribution, a key and a number.
    """

    parameterization = "scale_tril"
    operations: tuple[str, ...] = ("log_prob", "nll_gradient", "sample")
    xp: Any = JAX

    def __init__(
        self, name: str, module: str = "", package: str = "", diagonal: Any = None,
        full: Any = None, draw: Any = lambda d, key, n: d.sample(seed=key, sample_shape=(n,)),
    ) -> None:  # fmt: skip
        self.name, self.module, self.package = name, module or name, package or name
        self.diagonal, self.full, self.draw = diagonal, full, draw

    def load(self) -> None:
        """Import what is needed; raises if that is impossible."""
        importlib.import_module(self.module)

    def distribution(self, case: Case, raw: Any) -> Any:
        """The library's own distribution with batch shape ``[N]``."""
        d = importlib.import_module(self.module)
        logits, loc, raw_scale, lower = split(case, raw)
        scale = scale_of(self.xp, case, raw_scale)
        if lower is not None:
            components = self.full(d, loc, self.xp.fill(lower, scale))
        elif case.dim == 1:
            components = d.Normal(loc[..., 0], scale[..., 0])
        else:
            components = self.diagonal(d, loc, scale)
        return d.MixtureSameFamily(d.Categorical(logits=logits), components)

    def log_prob(self, case: Case, raw: Any, y: Any) -> Any:
        """Log-densities ``[N]``, nats."""
        return self.distribution(case, raw).log_prob(y[:, 0] if case.dim == 1 else y)

    def prepare(self, case: Case, problem: Any) -> Runner:
        """Make a case ready to run."""
        arguments = problem.arguments(self.parameterization)
        if case.operation == "sample":
            raw, key = arguments[0], problem.key
            return jax_runner(
                lambda raw, key: self.draw(self.distribution(case, raw), key, case.draws), raw, key
            )
        if case.operation == "log_prob":
            return jax_runner(lambda raw, y: self.log_prob(case, raw, y), *arguments)

        def loss(raw: Any, *rest: Any) -> Any:
            raw = raw @ rest[0] + rest[1] if case.linear else raw
            return -jnp.mean(self.log_prob(case, raw, rest[-1]))

        return loss_runner(case, loss, arguments)


class PlainJax(Library):
    """The textbook formula, to be differentiated automatically."""

    parameterization = "whitening"
    operations = ("log_prob", "nll", "nll_gradient", "linear_nll", "linear_nll_gradient")

    def log_prob(self, case: Case, raw: Any, y: Any) -> Any:
        raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
        return textbook(JAX, case, raw, y)


class TorchEager(Library):
    """``torch.distributions``, eager: float32, autograd for the gradient."""

    compiles = False

    def load(self) -> None:
        # Threads that spin at a barrier take the cores from whoever runs next, and lose hundreds of
        # milliseconds a step where anything else is running. Read once, when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(meshes.cores())
        self.xp = _torch_namespace(self.torch)
        platform = jax.devices()[0].platform
        if platform != "cpu" and not (platform == "gpu" and self.torch.cuda.is_available()):
            raise RuntimeError(f"JAX runs on {platform}, where torch sees no device")

    def prepare(self, case: Case, problem: Any) -> Runner:
        torch, where = self.torch, "cpu" if jax.default_backend() == "cpu" else "cuda"
        raw, y = (
            torch.tensor(np.asarray(array), device=where)
            for array in problem.arguments(self.parameterization)
        )

        def wait(result: Any) -> Any:
            if where == "cuda":
                torch.cuda.synchronize()
            return result

        if case.operation == "sample":
            return Runner(lambda: self.distribution(case, raw).sample((case.draws,)), wait=wait)
        if case.operation == "log_prob":
            return Runner(torch.no_grad()(lambda: self.log_prob(case, raw, y)), wait=wait)
        raw.requires_grad_()
        loss, seconds = self.compiled(lambda raw, y: -self.log_prob(case, raw, y).mean()), None

        def launch() -> Any:
            value = loss(raw, y)
            return value.detach(), torch.autograd.grad(value, raw)

        if self.compiles:
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the caches
                wait(launch())
            seconds = time.perf_counter() - start
        return Runner(launch, seconds, wait=wait)

    def compiled(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """The loss as it is run."""
        return loss


class TorchCompiled(TorchEager):
    """``torch.compile`` of the textbook formula, forward and backward."""

    parameterization = "whitening"
    operations = ("nll_gradient",)
    compiles = True

    def log_prob(self, case: Case, raw: Any, y: Any) -> Any:
        return textbook(self.xp, case, raw, y)

    def compiled(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        # Otherwise an earlier run's compilation is reused, and its seconds say nothing.
        importlib.import_module("torch._inductor.config").force_disable_caches = True
        # Shapes must not turn dynamic because an earlier case had others.
        importlib.import_module("torch._dynamo").reset()
        return self.torch.compile(loss, dynamic=False)


PLAIN = PlainJax("plain JAX", "jax")
DISTRAX = Library(
    "distrax",
    diagonal=lambda d, loc, scale: d.MultivariateNormalDiag(loc, scale),
    full=lambda d, loc, tril: d.MultivariateNormalTri(loc, tril),
)
TFP = Library(
    "TFP", "tensorflow_probability.substrates.jax.distributions", "tfp-nightly",
    diagonal=lambda d, loc, scale: d.MultivariateNormalDiag(loc, scale),
    full=lambda d, loc, tril: d.MultivariateNormalTriL(loc, tril),
)  # fmt: skip
NUMPYRO = Library(
    "numpyro", "numpyro.distributions", "numpyro",
    diagonal=lambda d, loc, scale: d.Normal(loc, scale).to_event(1),
    full=lambda d, loc, tril: d.MultivariateNormal(loc, scale_tril=tril),
    draw=lambda d, key, n: d.sample(key, (n,)),
)  # fmt: skip
TORCH = {
    "diagonal": lambda d, loc, scale: d.Independent(d.Normal(loc, scale), 1),
    "full": lambda d, loc, tril: d.MultivariateNormal(loc, scale_tril=tril),
}
#: Every library the suite knows, installed or not; the last one's compiler is slow.
PEERS = (
    DISTRAX, TFP, NUMPYRO,
    TorchEager("torch.distributions", package="torch", **TORCH),
    TorchCompiled("torch.compile", "torch", "torch"),
)  # fmt: skip
