"""``jaxmdn bench``: what the likelihood of your own head costs on this device."""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmdn
from jaxmdn import heads, losses, numerics
from jaxmdn.cli import timing
from jaxmdn.cli.errors import UsageError, positive_int
from jaxmdn.cli.evaluate import write_json
from jaxmdn.losses.kernels import dispatch

DTYPES = ("float32", "bfloat16", "float16", "float64")
BUDGET = 5.0  # seconds after which a slow implementation stops repeating
BLOCK_ENTRIES = 2**22  # of raw outputs, in one float64 pass
QUANTITIES = ("value", "value and gradient")


def add_parser(commands: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = commands.add_parser(
        "bench",
        help="time the likelihood of a head of your choice on this device",
        description=(
            "Time jaxmdn.nll from raw outputs, the value alone and with the gradient, by every "
            "implementation that serves: rows per second, the memory traffic that cannot be "
            "avoided as a share of what a copy reaches, and the error against float64. Runs on "
            "the device that JAX takes; JAX_PLATFORMS=cpu in the environment takes the CPU."
        ),
    )
    parser.add_argument("--components", type=positive_int, default=5, help="K (default: 5)")
    parser.add_argument("--dim", type=positive_int, default=1, help="D, outputs (default: 1)")
    parser.add_argument(
        "--family", default="normal", help="of every output, such as gamma (default: normal)"
    )
    parser.add_argument(
        "--covariance", choices=heads.COVARIANCES, help="of normals (default: diagonal)"
    )
    parser.add_argument("--rows", type=positive_int, default=65536, help="N (default: 65536)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the raw outputs (default: float32)"
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=21, help="samples of every time (default: 21)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table, write the file asked for."""
    if arguments.family != "normal" and arguments.covariance is not None:
        raise UsageError("--covariance is of normals alone; leave it or --family out.")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise UsageError(f"--json {arguments.json}: name a file in an existing folder.")
    K, D = arguments.components, arguments.dim
    head: heads.Head
    kind, head = arguments.family, heads.FactorizedHead((arguments.family,) * D, K)
    if kind == "normal":
        covariance = arguments.covariance or "diagonal"
        kind, head = f"{covariance} normal", heads.NormalHead(K, D, covariance=covariance)
    with jax.enable_x64(arguments.dtype == "float64"):
        results, roofs = measure(head, arguments.rows, arguments.dtype, arguments.repeats)
    packages = ("jaxmdn", "jax", "jaxlib")
    found = {
        "device": timing.device(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "family": kind, "components": K, "dim": D, "rows": arguments.rows,
        "dtype": arguments.dtype, "roofs": roofs, "results": results,
    }  # fmt: skip
    print(table(found))
    if arguments.json:
        write_json(Path(arguments.json), found)


def measure(
    head: heads.Head, rows: int, dtype: str, repeats: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Time every implementation that serves a head; return the figures and the copy's rates."""
    raw, y = draw(head, rows, dtype)
    exact, roofs = float64_nll(head, raw, y), timing.copy_rates()
    default = dispatch.choose("nll", None, head, raw, dtype=numerics.compute_dtype(raw))
    results, runners = [], []
    for quantity, name in itertools.product(QUANTITIES, dispatch.IMPLEMENTATIONS):
        nll = functools.partial(losses.nll, head, implementation=name)
        try:
            function = nll if quantity == "value" else jax.value_and_grad(nll)
            runner = timing.jax_runner(function, raw, y)
        except NotImplementedError:
            continue
        runners.append(runner)
        results.append(
            {
                "quantity": quantity, "implementation": name, "default": name == default,
                "error": error(runner.call(), exact), "compile_seconds": runner.compile_seconds,
            }
        )  # fmt: skip
    for result, seconds in zip(results, timing.alternate(runners, repeats, BUDGET), strict=True):
        moved = y.nbytes + raw.nbytes * (1 if result["quantity"] == "value" else 2)
        result["seconds"], result["rows_per_second"] = seconds, rows / seconds["median"]
        result["share_of_copy"] = moved / seconds["median"] / max(roofs.values())
    return results, roofs


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw(head: heads.Head, rows: int, dtype: str) -> tuple[Any, Any]:
    """Raw outputs ``[N, P]`` and a sample of their densities, so that no branch is left out."""
    key_raw, key_target = jax.random.split(jax.random.key(0))
    raw = 0.5 * jax.random.normal(key_raw, (rows, head.num_outputs))
    y: Any = jaxmdn.sample(key_target, head(raw))
    classes = jnp.issubdtype(y.dtype, jnp.integer)
    return raw.astype(dtype), y if classes else jnp.asarray(y, jnp.float32)


def float64_nll(head: heads.Head, raw: Any, y: Any) -> tuple[Any, Any]:
    """The mean NLL and its gradient, in float64, a block of rows at a time."""
    with jax.enable_x64(True):
        plain = functools.partial(losses.nll, head, reduction="sum", implementation="xla")
        differentiate = jax.jit(jax.value_and_grad(plain))
        block = max(1, BLOCK_ENTRIES // head.num_outputs)
        parts = [
            differentiate(
                *(np.asarray(a[start : start + block]).astype(np.float64) for a in (raw, y))
            )
            for start in range(0, len(raw), block)
        ]
    values, gradients = (list(map(np.asarray, part)) for part in zip(*parts, strict=True))
    return np.sum(values) / len(raw), np.concatenate(gradients) / len(raw)


def error(found: Any, exact: tuple[Any, Any]) -> float | None:
    """The larger of the value's error and of ``max |g - g64| / max |g64|``; None if not finite.

    The value's error is relative to one nat or to the value, whichever is larger.
    """
    value, *gradient = found if isinstance(found, tuple) else (found,)
    errors = [abs(float(value) - exact[0]) / max(1.0, abs(exact[0]))]
    for array in gradient:
        difference = np.abs(np.asarray(array).astype(np.float64) - exact[1])
        errors.append(difference.max() / np.abs(exact[1]).max())
    worst = float(np.max(errors))  # NaN stays
    return worst if np.isfinite(worst) else None


def table(found: dict[str, Any]) -> str:
    """The figures as text, at most 80 columns wide."""
    head = f"{found['family']}: {found['components']} components, {found['dim']} output(s)"
    copies = " and ".join(f"{rate / 1e9:.1f}" for rate in found["roofs"].values())
    lines = [
        f"{head}, {found['rows']} rows, {found['dtype']}",
        f"{timing.device_title(found['device'])}; copying: {copies} GB/s in place and anew",
        ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    ]
    for quantity in QUANTITIES:
        lines += [
            "",
            f"{quantity:<18}{'ms':>7}{'quartiles':>17}{'rows/s':>10}{'of copy':>9}{'error':>9}"
            f"{'compile':>8}",
        ]
        for result in found["results"]:
            if result["quantity"] != quantity:
                continue
            low, median, high = (
                f"{1e3 * result['seconds'][name]:#.3g}".rstrip(".")
                for name in ("lower_quartile", "median", "upper_quartile")
            )
            name = "  " + result["implementation"] + " *" * result["default"]
            wrong = "not finite" if result["error"] is None else f"{result['error']:.1e}"
            lines.append(
                f"{name:<18}{median:>7}{low + ' to ' + high:>17}{result['rows_per_second']:>10.2e}"
                f"{result['share_of_copy']:>9.0%}{wrong:>9}{result['compile_seconds']:>6.2f} s"
            )
    return "\n".join(
        [
            *lines,
            "",
            "* the default. of copy: the traffic that cannot be avoided (raw outputs,",
            "targets, gradient, once each) beside the faster copy. error: against float64.",
        ]
    )
