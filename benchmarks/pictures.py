"""Plots of a report: throughput, ratios to the peers, growth of the cost.

Colours are Okabe and Ito's, which survive colour blindness; every contender also has a marker of
its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.cases import OPERATIONS, SWEEPS
from benchmarks.records import by_case, curves, exponent, is_of_families, rivals
from jaxmdn.cli.timing import device_title

STYLES = {  # contender -> colour, marker
    "jaxmdn": ("#0072B2", "o"),
    "jaxmdn, xla": ("#56B4E9", "s"),
    "jaxmdn, xla_chunked": ("#56B4E9", "P"),
    "plain JAX": ("#000000", "D"),
    "distrax": ("#D55E00", "^"),
    "TFP": ("#E69F00", "v"),
    "numpyro": ("#009E73", "<"),
    "torch.distributions": ("#CC79A7", ">"),
    "torch.compile": ("#8A6FB0", "X"),
    "flax.nnx.jit": ("#4D4D4D", "p"),
    "one after another": ("#A65628", "*"),
}
OTHER = ("#7F7F7F", "h")
LABELS = {
    "rows": "rows N",
    "components": "components K",
    "dimensions": "dimensions D (diagonal)",
    "dimensions, full": "dimensions D (full covariance)",
}


def draw(report: dict[str, Any]) -> dict[str, Figure]:
    """Return figures by name; those that have nothing to show are left out."""
    if is_of_families(report):
        return {}
    records = report["measurements"]
    title = f"{device_title(report['device'])}, {report['date']}"
    figures = {}
    if any(curves(records, sweep) for sweep in SWEEPS):
        figures = {"throughput": throughput(records, title), "scaling": scaling(records, title)}
    if _compared(records):
        figures["ratios"] = ratios(records, title)
    return figures


def save(figure: Figure, path: Path) -> None:
    """Write a figure and close it."""
    figure.savefig(path, dpi=120)
    plt.close(figure)


def throughput(records: list[dict[str, Any]], title: str) -> Figure:
    """Rows per second along every sweep."""
    figure, panels = _panels(records, "rows per second", f"throughput. {title}")
    entries: dict[str, Any] = {}  # one legend for all panels, each contender once
    for sweep, ax in panels.items():
        found = curves(records, sweep)
        for name, (sizes, seconds) in found.items():
            rows = [r["rows"] for r in records if (r["sweep"], r["contender"]) == (sweep, name)
                    and "seconds" in r]  # fmt: skip
            (line,) = ax.plot(sizes, np.divide(rows, seconds), **_style(name))
            entries.setdefault(name, line)
        _loglog(ax, sweep, records)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(5, len(entries)),
        frameon=False, fontsize=8,
    )  # fmt: skip
    return figure


def scaling(records: list[dict[str, Any]], title: str) -> Figure:
    """Time along every sweep, with the growth of the arithmetic as a guide."""
    figure, panels = _panels(records, "time per call, ms", f"growth. {title}")
    for sweep, ax in panels.items():
        power, found = SWEEPS[sweep][1], curves(records, sweep)
        for name in filter(found.__contains__, list(STYLES)[:4]):
            sizes, seconds = found[name]
            slope = f": exponent {exponent(sizes, seconds):.2f}" if len(sizes) > 1 else ""
            ax.plot(sizes, 1e3 * np.asarray(seconds), label=name + slope, **_style(name))
        if "jaxmdn" in found:
            sizes, seconds = found["jaxmdn"]
            guide = 0.4e3 * seconds[-1] * (np.asarray(sizes) / sizes[-1]) ** power
            ax.plot(sizes, guide, ":", c=OTHER[0], lw=1.4, label=("linear", "quadratic")[power - 1])
        _loglog(ax, sweep, records)
        ax.legend(frameon=False, fontsize=7.5, loc="upper left")
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.25)  # room for the legend
    return figure


def ratios(records: list[dict[str, Any]], title: str) -> Figure:
    """How much longer than jaxmdn the others take, at the shapes of the tables."""
    groups = _compared(records)
    figure, ax = plt.subplots(figsize=(9.5, 1.3 + 0.3 * len(groups)), layout="constrained")
    ax.axvline(1.0, color=STYLES["jaxmdn"][0], lw=1.4, label="jaxmdn")
    labels, seen = [], set()
    for row, (label, group) in enumerate(groups):
        labels.append(f"{group['jaxmdn']['operation'].replace('_', ' ')}: {label}")
        for name, times in rivals(group).items():
            style = _style(name) | {"ls": "", "ms": 7}
            ax.plot([times], [row], label=None if name in seen else name, **style)
            seen.add(name)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.minorticks_off()
    ax.set_xlabel("time divided by jaxmdn's (to the right: jaxmdn is faster)")
    ax.grid(axis="both", which="major", color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    figure.suptitle(f"Others beside jaxmdn. {title}", fontsize=10)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _compared(records: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Cases of the tables with a rival: of two links, the one that more took part in."""
    tables = [r for r in records if r["sweep"] == "figures" and r["dtype"] == "float32"]
    chosen: dict[tuple, tuple[str, dict[str, Any]]] = {}
    for label, group in by_case(tables):
        own = group.get("jaxmdn", {})
        key = tuple(own.get(name) for name in ("operation", "rows", "components", "dim"))
        if len(rivals(group)) > len(rivals(chosen.get(key, ("", {}))[1])):
            chosen[key] = label, group
    return sorted(
        chosen.values(), key=lambda item: list(OPERATIONS).index(item[1]["jaxmdn"]["operation"])
    )


def _style(name: str) -> dict[str, Any]:
    color, marker = STYLES.get(name, OTHER)
    own = name == "jaxmdn"
    return {
        "color": color, "marker": marker, "ms": 5, "lw": 2.2 if own else 1.2, "zorder": 2 + own
    }  # fmt: skip


def _panels(records: list[dict[str, Any]], ylabel: str, title: str) -> tuple[Figure, dict]:
    """A figure with a panel for each sweep that was measured."""
    sweeps = [sweep for sweep in SWEEPS if curves(records, sweep)]
    size = (1.2 + 3.2 * len(sweeps), 4.0)
    figure, axes = plt.subplots(1, len(sweeps), figsize=size, layout="constrained", squeeze=False)
    axes[0, 0].set_ylabel(ylabel)
    figure.suptitle(f"Value and gradient of the NLL, float32: {title}", fontsize=10)
    return figure, dict(zip(sweeps, axes[0], strict=True))


def _loglog(ax: Any, sweep: str, records: list[dict[str, Any]]) -> None:
    """Logarithmic axes with the swept sizes as ticks, and what is held fixed as the title."""
    own = [record for record in records if record["sweep"] == sweep]
    size = SWEEPS[sweep][0]
    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = sorted({record[size] for record in own})
    ax.set_xticks(ticks, [_tick(tick) for tick in ticks])
    low, high = ax.get_ylim()
    ax.set_ylim(0.8 * low, 1.25 * high)
    dense = high / low < 100  # a decade alone would have one label
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if dense else (1,)))
    ax.yaxis.set_major_formatter(lambda value, _: _tick(value))
    ax.minorticks_off()
    ax.tick_params(labelsize=8)
    ax.set_xlabel(LABELS[sweep])
    fixed = {"rows": "N", "components": "K", "dim": "D"}
    held = [f"{symbol} = {own[0][name]}" for name, symbol in fixed.items() if name != size]
    ax.set_title(", ".join(held), fontsize=9)
    ax.grid(which="major", color="#DDDDDD", lw=0.6)


def _tick(value: int | float) -> str:
    if value < 1e4:
        return f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    digit = value / 10**power
    if abs(digit - round(digit)) > 1e-6:
        return f"{value:g}"
    return f"$10^{power}$" if round(digit) == 1 else f"${digit:.0f}\\cdot 10^{power}$"
