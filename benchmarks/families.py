"""What the other families cost beside the normal: value and gradient of the NLL from raw outputs.

The target of every family is a sample of its own density, so that no branch is left out.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from typing import Any

import jax

import jaxmdn
from benchmarks import environment, floors
from jaxmdn.cli import timing
from jaxmdn.cli.bench import draw
from jaxmdn.heads import FactorizedHead, Family, NormalHead, family_names

#: What the ratios are to; and the same density by the fused form, for comparison.
REFERENCE, FUSED = "normal", "normal, fused (NormalHead)"
OTHERS = (
    Family("student_t", df=4.0),
    Family("hurdle", base="poisson"),
    Family("zero_inflated", base="negative_binomial"),
)


def label(family: str | Family) -> str:
    """A family with what differs from its defaults, for tables."""
    if isinstance(family, str):
        return family
    default = dict(Family(family.name).constants)
    own = {name: value for name, value in family.constants if default.get(name) != value}
    shown = (getattr(value, "name", value) for value in own.values())
    return ", ".join([family.name, *(f"{k} = {v}" for k, v in zip(own, shown, strict=True))])


def run(
    families: Sequence[str | Family] = (),
    *,
    rows: int = 16384,
    components: int = 32,
    repeats: int = 21,
    budget: float = 5.0,
    floor: bool = True,
) -> dict[str, Any]:
    """Measure families in one process, in turns, and return the report, ready for JSON.

    Args:
      families: what to measure, the normal among them; by default all of one output and OTHERS.
      rows, components: N and K.
      repeats, budget: as in ``suite.run``.
      floor: whether to count each family's transcendental functions and time them alone.
    """
    single = [name for name in family_names() if not Family(name).joint]
    heads: dict[str, Any] = {FUSED: NormalHead(components, 1)}
    heads |= {
        label(family): FactorizedHead(family, components)
        for family in families or (*single, *OTHERS)
    }
    runners = [timing.jax_runner(*_problem(head, rows)) for head in heads.values()]
    each = floors.seconds_each(rows * components) if floor else {}
    counts = [floors.count(*_problem(head, rows)) if floor else {} for head in heads.values()]
    times = dict(zip(heads, timing.alternate(runners, repeats, budget), strict=True))
    return {
        **environment.describe(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": rows,
        "components": components,
        "dtype": "float32",
        "measurements": [
            {
                "family": name,
                "seconds": seconds,
                "ratio": seconds["median"] / times[REFERENCE]["median"],
                "compile_seconds": runner.compile_seconds,
                "operations": {kind: n / (rows * components) for kind, n in found.items()},
                "floor": sum(n * each[kind] for kind, n in found.items()),
            }
            for (name, seconds), runner, found in zip(times.items(), runners, counts, strict=True)
        ],
    }


def _problem(head: Any, rows: int) -> tuple[Any, ...]:
    """Value and gradient of the mean NLL, and their arguments."""
    nll = jax.value_and_grad(functools.partial(jaxmdn.nll, head))
    return nll, *draw(head, rows, "float32")
