"""Who takes part in which case, and how each is made ready to run.

Besides jaxmdn as a user calls it (``"jaxmdn"``) there are its named implementations, the textbook
formula, other libraries, and floors: less than the operation, such as the matrix products or the
random numbers alone, which nothing can undercut.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxmdn
from benchmarks import training
from benchmarks.cases import Case
from benchmarks.densities import Distrax, JaxDensity, Numpyro, PlainJax, Tfp
from benchmarks.problem import Problem
from benchmarks.timing import Runner, jax_runner
from benchmarks.torch_peers import TorchCompiled, TorchEager, TorchPeer
from jaxmdn.losses.kernels import dispatch

Peer = JaxDensity | TorchPeer
BISECTIONS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that is timed.

    Attributes:
      name: what tables call it; ``"jaxmdn"`` is what all others are compared with.
      kind: ``"jaxmdn"``, ``"implementation"``, ``"baseline"``, ``"peer"`` or ``"floor"``.
      prepare: compiles; may raise, which is recorded.
      parameterization: of full covariances (see ``problem``).
      implementation: of jaxmdn's fused functions.
    """

    name: str
    kind: str
    prepare: Callable[[], Runner]
    parameterization: str = "whitening"
    implementation: str | None = None


def all_peers(*, quick: bool = False) -> tuple[Peer, ...]:
    """Every library the suite knows, installed or not; ``quick``: but for slow compilers."""
    peers = (Distrax(), Tfp(), Numpyro(), TorchEager())
    return peers if quick else (*peers, TorchCompiled())


def of_case(case: Case, problem: Problem, peers: Sequence[Peer]) -> list[Contender]:
    """Return who takes part, jaxmdn first."""
    if case.is_step:
        return [
            Contender(name=name, kind=kind, prepare=prepare)
            for name, kind, prepare in training.contenders(case)
        ]
    contenders = _own(case, problem)
    plain = PlainJax()
    if case.operation in plain.operations:
        contenders.append(
            Contender(
                name=plain.name, kind="baseline", prepare=lambda: _density(plain, case, problem)
            )
        )
    floor = _floor(case, problem)
    if floor is not None:
        contenders.append(floor)
    if case.peers:
        for peer in peers:
            if case.operation in peer.operations:
                contenders.append(_peer(peer, case, problem))
    return contenders


def _peer(peer: Peer, case: Case, problem: Problem) -> Contender:
    def prepare() -> Runner:
        if isinstance(peer, TorchPeer):
            return peer.prepare(case, problem)
        return _density(peer, case, problem)

    return Contender(
        name=peer.name, kind="peer", prepare=prepare, parameterization=peer.parameterization
    )


def chosen_implementation(case: Case) -> str | None:
    """What ``implementation=None`` stands for in this case."""
    if case.operation not in ("nll", "nll_gradient") and not case.linear:
        return None
    unfused = dispatch.choose("nll", None, case.head)
    if not case.linear:
        return unfused
    chosen = dispatch.choose("linear_nll", None, case.head, linear=True)
    # A product of its own, followed by whatever serves raw outputs.
    return f"matmul, {unfused}" if chosen == "xla" != unfused else chosen


def _own(case: Case, problem: Problem) -> list[Contender]:
    head = case.head
    if case.operation == "log_prob":

        def log_prob(raw: Any, y: Any) -> Any:
            return jaxmdn.log_prob(head(raw), y)

        arguments = (problem.raw["whitening"], problem.y)
        return [_jaxmdn(lambda: jax_runner(log_prob, *arguments))]
    if case.operation == "sample":

        def sample(raw: Any, key: Any) -> Any:
            return jaxmdn.sample(key, head(raw), case.draws)

        arguments = (problem.raw["whitening"], problem.key)
        return [_jaxmdn(lambda: jax_runner(sample, *arguments))]
    if case.operation == "quantile":
        return _quantile(case, problem)
    chosen = chosen_implementation(case)
    others = [name for name in dispatch.IMPLEMENTATIONS if name != chosen or name == "xla"]
    contenders = [_jaxmdn(lambda: _nll(case, problem, None), chosen)]
    for name in others:
        contenders.append(
            Contender(
                name=f"jaxmdn, {name}",
                kind="implementation",
                prepare=functools.partial(_nll, case, problem, name),
                implementation=name,
            )
        )
    return contenders


def _jaxmdn(prepare: Callable[[], Runner], implementation: str | None = None) -> Contender:
    return Contender(name="jaxmdn", kind="jaxmdn", prepare=prepare, implementation=implementation)


def _nll(case: Case, problem: Problem, implementation: str | None) -> Runner:
    """jaxmdn's fused losses."""
    head = case.head

    def nll(raw: Any, y: Any) -> Any:
        return jaxmdn.nll(head, raw, y, implementation=implementation)

    def linear_nll(hidden: Any, kernel: Any, bias: Any, y: Any) -> Any:
        return jaxmdn.linear_nll(head, hidden, kernel, bias, y, implementation=implementation)

    if case.linear:
        return _loss(case, linear_nll, (*problem.layer, problem.y))
    return _loss(case, nll, (problem.raw["whitening"], problem.y))


def _density(density: JaxDensity, case: Case, problem: Problem) -> Runner:
    """The operation, made of a library's log-density and sampling."""

    def nll(raw: Any, y: Any) -> Any:
        return -jnp.mean(density.log_prob(case, raw, y))

    if case.operation == "sample":
        raw = problem.raw[density.parameterization]
        return jax_runner(lambda raw, key: density.sample(case, raw, key), raw, problem.key)
    if case.linear:
        return _loss(
            case,
            lambda hidden, kernel, bias, y: nll(hidden @ kernel + bias, y),
            (*problem.layer, problem.y),
        )
    arguments = (problem.raw[density.parameterization], problem.y)
    if case.operation == "log_prob":
        return jax_runner(lambda raw, y: density.log_prob(case, raw, y), *arguments)
    return _loss(case, nll, arguments)


def _loss(case: Case, loss: Callable[..., Any], arguments: tuple[Any, ...]) -> Runner:
    """A loss, or its value and gradient with respect to everything but the targets."""
    if case.operation.endswith("gradient"):
        loss = jax.value_and_grad(loss, argnums=tuple(range(len(arguments) - 1)))
    return jax_runner(loss, *arguments)


def _floor(case: Case, problem: Problem) -> Contender | None:
    """What the operation cannot do without, alone."""
    if case.operation == "sample":
        shape = (case.draws, case.rows, case.dim)
        return Contender(
            name="the normals alone",
            kind="floor",
            prepare=lambda: jax_runner(
                lambda key: jax.random.normal(key, shape, jnp.float32), problem.key
            ),
        )
    if not case.linear:
        return None

    def products(hidden: Any, kernel: Any, cotangent: Any) -> Any:
        raw = hidden @ kernel
        if case.operation == "linear_nll":
            return raw
        return raw, cotangent @ kernel.T, hidden.T @ cotangent

    hidden, kernel, _ = problem.layer
    return Contender(
        name="the matrix products alone",
        kind="floor",
        prepare=lambda: jax_runner(products, hidden, kernel, hidden @ kernel),
    )


def _quantile(case: Case, problem: Problem) -> list[Contender]:
    """jaxmdn's quantile, where it has one, beside bisection of the cdf."""
    quantile = getattr(jaxmdn, "quantile", None)
    if quantile is None:
        return []
    head, arguments = case.head, (problem.raw["whitening"], problem.probability)

    def bisect(raw: Any, p: Any) -> Any:
        mixture = head(raw)
        components = mixture.components
        each = jax.scipy.special.ndtri(p)[:, None, :] * components.scale + components.loc
        bounds = (jnp.min(each, axis=1), jnp.max(each, axis=1))

        def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
            low, high = bounds
            middle = 0.5 * (low + high)
            below = jaxmdn.cdf(mixture, middle) < p
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, BISECTIONS, halve, bounds)
        return 0.5 * (low + high)

    return [
        _jaxmdn(lambda: jax_runner(lambda raw, p: quantile(head(raw), p), *arguments)),
        Contender(
            name=f"{BISECTIONS} bisections",
            kind="baseline",
            prepare=lambda: jax_runner(bisect, *arguments),
        ),
    ]
