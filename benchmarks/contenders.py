"""Who takes part in which case, and how each is made ready to run.

Besides jaxmdn as a user calls it (``"jaxmdn"``) there are its named implementations, the textbook
formula, other libraries, and floors: less than the operation, such as the matrix products or the
random numbers alone, which nothing can undercut.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxmdn
from benchmarks import epochs, training
from benchmarks.cases import Case
from benchmarks.densities import PLAIN, Library, loss_runner
from benchmarks.problem import Problem
from jaxmdn.cli.timing import Runner, jax_runner
from jaxmdn.losses.kernels import dispatch

BISECTIONS = 24


class Contender(NamedTuple):
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


def of_case(case: Case, problem: Problem, peers: Sequence[Library]) -> list[Contender]:
    """Return who takes part, jaxmdn first."""
    if case.operation == "fit_epoch":
        return [Contender(*prepared) for prepared in epochs.contenders(case, peers)]
    if case.is_step:
        others = epochs.pytorch(case, peers) if case.operation == "training_step" else []
        return [Contender(*prepared) for prepared in (*training.contenders(case), *others)]
    found = _own(case, problem)
    libraries = [("baseline", PLAIN)] + [("peer", peer) for peer in peers if case.peers]
    densities = [
        Contender(
            library.name, kind, functools.partial(library.prepare, case, problem),
            library.parameterization,
        )
        for kind, library in libraries
        if case.operation in library.operations
    ]  # fmt: skip
    count = sum(contender.kind == "baseline" for contender in densities)
    return [*found, *densities[:count], *_floor(case, problem), *densities[count:]]


def chosen_implementation(case: Case) -> str:
    """What ``implementation=None`` stands for in a likelihood."""
    unfused = dispatch.choose("nll", None, case.head)
    if not case.linear:
        return unfused
    chosen = dispatch.choose("linear_nll", None, case.head, linear=True)
    # A product of its own, followed by whatever serves raw outputs.
    return f"matmul, {unfused}" if chosen == "xla" != unfused else chosen


def _own(case: Case, problem: Problem) -> list[Contender]:
    """jaxmdn, its implementations, and what its quantile is compared with."""
    head, raw = case.head, problem.raw.get("whitening")
    arguments = {
        "log_prob": (lambda raw, y: jaxmdn.log_prob(head(raw), y), raw, problem.y),
        "sample": (lambda raw, key: jaxmdn.sample(key, head(raw), case.draws), raw, problem.key),
        "quantile": (lambda raw, p: jaxmdn.quantile(head(raw), p), raw, problem.probability),
    }.get(case.operation)
    if arguments is not None:
        own = [Contender("jaxmdn", "jaxmdn", lambda: jax_runner(*arguments))]
        if case.operation == "quantile":
            bisect = functools.partial(_bisect, head)
            name = f"{BISECTIONS} bisections"
            own.append(Contender(name, "baseline", lambda: jax_runner(bisect, *arguments[1:])))
        return own
    loss = functools.partial(jaxmdn.linear_nll if case.linear else jaxmdn.nll, head)

    def nll(implementation: str | None) -> Runner:
        chosen = functools.partial(loss, implementation=implementation)
        return loss_runner(case, chosen, problem.arguments("whitening"))

    chosen = chosen_implementation(case)
    others = [name for name in dispatch.IMPLEMENTATIONS if name != chosen or name == "xla"]
    return [
        Contender("jaxmdn", "jaxmdn", lambda: nll(None), implementation=chosen),
        *(
            Contender(
                f"jaxmdn, {name}", "implementation", functools.partial(nll, name),
                implementation=name,
            )
            for name in others
        ),
    ]  # fmt: skip


def _bisect(head: Any, raw: Any, p: Any) -> Any:
    """Quantiles by halving the span of the components' own."""
    mixture = head(raw)
    components = mixture.components
    each = jax.scipy.special.ndtri(p)[:, None, :] * components.scale + components.loc

    def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
        middle = 0.5 * (bounds[0] + bounds[1])
        below = jaxmdn.cdf(mixture, middle) < p
        return jnp.where(below, middle, bounds[0]), jnp.where(below, bounds[1], middle)

    bounds = (jnp.min(each, axis=1), jnp.max(each, axis=1))
    return 0.5 * sum(jax.lax.fori_loop(0, BISECTIONS, halve, bounds))


def _floor(case: Case, problem: Problem) -> list[Contender]:
    """What the operation cannot do without, alone."""
    if case.operation == "sample":
        shape = (case.draws, case.rows, case.dim)
        normals = functools.partial(jax.random.normal, shape=shape, dtype=jnp.float32)
        prepare = functools.partial(jax_runner, normals, problem.key)
        return [Contender("the normals alone", "floor", prepare)]
    if not case.linear:
        return []
    hidden, kernel, _ = problem.layer

    def products(hidden: Any, kernel: Any, cotangent: Any) -> Any:
        raw = hidden @ kernel
        return (raw, cotangent @ kernel.T, hidden.T @ cotangent) if case.gradient else raw

    prepare = functools.partial(jax_runner, products, hidden, kernel, hidden @ kernel)
    return [Contender("the matrix products alone", "floor", prepare)]
