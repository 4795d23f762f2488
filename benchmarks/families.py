"""What the other families cost beside the normal: value and gradient of the NLL from raw outputs.

The target of every family is a sample of its own density, so that no branch is left out.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxmdn
from benchmarks import environment, timing
from benchmarks.files import replace_file, write_text
from jaxmdn.heads import FAMILIES, FactorizedHead, Family, NormalHead

#: The shape and how many times as long as the normal a family may take.
ROWS, COMPONENTS, AIM = 16384, 32, 3.0
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
    families: Sequence[str | Family] = (*FAMILIES, *OTHERS),
    *,
    rows: int = ROWS,
    components: int = COMPONENTS,
    repeats: int = 21,
    budget: float = 5.0,
) -> dict[str, Any]:
    """Measure families in one process, in turns, and return the report, ready for JSON.

    Args:
      families: what to measure, the normal among them.
      rows, components: N and K.
      repeats, budget: as in ``suite.run``.
    """
    heads: dict[str, Any] = {FUSED: NormalHead(components, 1)}
    heads |= {label(family): FactorizedHead(family, components) for family in families}
    runners = {name: _runner(head, rows) for name, head in heads.items()}
    times = timing.alternate(list(runners.values()), repeats, budget)
    reference = dict(zip(runners, map(timing.summary, times), strict=True))[REFERENCE]["median"]
    measurements = []
    for (name, runner), seconds in zip(runners.items(), times, strict=True):
        summary = timing.summary(seconds)
        measurements.append(
            {
                "family": name,
                "seconds": summary,
                "ratio": summary["median"] / reference,
                "compile_seconds": runner.compile_seconds,
            }
        )
    return {
        "device": environment.device(),
        "versions": environment.versions(()),
        "variables": environment.variables(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": rows,
        "components": components,
        "dtype": "float32",
        "measurements": measurements,
    }


def _runner(head: Any, rows: int) -> timing.Runner:
    key_raw, key_target = jax.random.split(jax.random.key(0))
    raw = 0.5 * jax.random.normal(key_raw, (rows, head.num_outputs))
    y = jnp.asarray(jaxmdn.sample(key_target, head(raw)), jnp.float32)
    return timing.jax_runner(jax.value_and_grad(lambda raw, y: jaxmdn.nll(head, raw, y)), raw, y)


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [
        "# Families: value and gradient of the mean NLL with respect to raw outputs",
        "",
        f"{environment.title(report['device'])}, {report['dtype']}, {report['rows']} rows, "
        f"{report['components']} components, D = 1, {report['date']}, "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + f". Aim: at most {AIM:g} times the normal. Median of each family's samples.",
        "",
        "| family | ms | times the normal | aim | compile, s |",
        "|---|---|---|---|---|",
    ]
    for record in report["measurements"]:
        met = "met" if record["ratio"] <= AIM else "**missed**"
        lines.append(
            f"| {record['family']} | {1e3 * record['seconds']['median']:.2f} | "
            f"{record['ratio']:.2f} | {met} | {record['compile_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def write(report: dict[str, Any], folder: Path, suffix: str = "") -> list[Path]:
    """Write JSON and Markdown named after the device; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{environment.slug(report['device'])}-families{suffix}"
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    texts = (json.dumps(report, indent=1, allow_nan=False) + "\n", markdown(report))
    for path, text in zip(paths, texts, strict=True):
        replace_file(path, functools.partial(write_text, text=text))
    return paths
