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

from benchmarks import environment
from benchmarks.cases import OPERATIONS, SWEEPS
from benchmarks.records import by_case, curves, exponent, milliseconds

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
    records = report["measurements"]
    title = f"{environment.title(report['device'])}, {report['date']}"
    sweeps = [sweep for sweep in SWEEPS if curves(records, sweep)]
    figures = {}
    if sweeps:
        figures["throughput"] = throughput(records, sweeps, title)
        figures["scaling"] = scaling(records, sweeps, title)
    if _compared(records):
        figures["ratios"] = ratios(records, title)
    return figures


def save(figure: Figure, path: Path) -> None:
    """Write a figure and close it."""
    figure.savefig(path, dpi=120)
    plt.close(figure)


def throughput(records: list[dict[str, Any]], sweeps: list[str], title: str) -> Figure:
    """Rows per second along every sweep."""
    figure, axes = _panels(len(sweeps))
    for ax, sweep in zip(axes, sweeps, strict=True):
        for name, (sizes, seconds) in curves(records, sweep).items():
            rows = _rows(records, sweep, name)
            ax.plot(sizes, np.divide(rows, seconds), label=name, **_style(name))
        _loglog(ax, sweep, records)
    axes[0].set_ylabel("rows per second")
    figure.suptitle(f"Value and gradient of the NLL, float32: throughput. {title}", fontsize=10)
    _legend(figure, axes)
    return figure


def scaling(records: list[dict[str, Any]], sweeps: list[str], title: str) -> Figure:
    """Time along every sweep, with the growth of the arithmetic as a guide."""
    figure, axes = _panels(len(sweeps))
    for ax, sweep in zip(axes, sweeps, strict=True):
        power = SWEEPS[sweep][1]
        found = curves(records, sweep)
        for name in filter(found.__contains__, list(STYLES)[:4]):
            sizes, seconds = found[name]
            label = name
            if len(sizes) > 1:
                label += f": exponent {exponent(sizes, seconds):.2f}"
            ax.plot(sizes, 1e3 * np.asarray(seconds), label=label, **_style(name))
        if "jaxmdn" in found:
            sizes, seconds = found["jaxmdn"]
            guide = 0.4e3 * seconds[-1] * (np.asarray(sizes) / sizes[-1]) ** power
            word = {1: "linear", 2: "quadratic"}[power]
            ax.plot(sizes, guide, ":", color="#7F7F7F", lw=1.4, label=word)
        _loglog(ax, sweep, records)
        ax.legend(frameon=False, fontsize=7.5, loc="upper left")
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.25)  # room for the legend
    axes[0].set_ylabel("time per call, ms")
    figure.suptitle(f"Value and gradient of the NLL, float32: growth. {title}", fontsize=10)
    return figure


def ratios(records: list[dict[str, Any]], title: str) -> Figure:
    """How much longer than jaxmdn the others take, at the shapes of the tables."""
    groups = _compared(records)
    height = 1.3 + 0.3 * len(groups)
    figure, ax = plt.subplots(figsize=(9.5, height), layout="constrained")
    seen = set()
    labels = []
    for row, (label, group) in enumerate(groups):
        own = group["jaxmdn"]
        labels.append(f"{_short(own['operation'])}: {label}")
        for name, record in group.items():
            if name == "jaxmdn" or record["kind"] not in ("peer", "baseline"):
                continue
            style = _style(name) | {"ls": "", "ms": 7}
            time = milliseconds(record)
            if time is None:
                continue
            ratio = time / milliseconds(own)  # type: ignore[operator]
            ax.plot([ratio], [row], label=None if name in seen else name, **style)
            seen.add(name)
    ax.axvline(1.0, color=STYLES["jaxmdn"][0], lw=1.4, label="jaxmdn")
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
    """Cases of the tables where a peer or a baseline ran beside jaxmdn."""
    tables = [
        record
        for record in records
        if record["sweep"] == "figures" and record["dtype"] == "float32"
        if record["link"] == "exp" or record["operation"].endswith("step")
    ]
    chosen = []
    for label, group in by_case(tables):
        if milliseconds(group.get("jaxmdn", {})) is None:
            continue
        if any(r.get("kind") in ("peer", "baseline") and "seconds" in r for r in group.values()):
            chosen.append((label, group))
    return sorted(chosen, key=lambda item: list(OPERATIONS).index(item[1]["jaxmdn"]["operation"]))


def _short(operation: str) -> str:
    return operation.replace("_", " ")


def _style(name: str) -> dict[str, Any]:
    color, marker = STYLES.get(name, OTHER)
    strong = name == "jaxmdn"
    return {
        "color": color, "marker": marker, "ms": 5, "lw": 2.2 if strong else 1.2,
        "zorder": 3 if strong else 2,
    }  # fmt: skip


def _rows(records: list[dict[str, Any]], sweep: str, name: str) -> list[float]:
    return [
        float(record["rows"])
        for record in records
        if record["sweep"] == sweep and record["contender"] == name and "seconds" in record
    ]


def _panels(count: int) -> tuple[Figure, list[Any]]:
    figure, axes = plt.subplots(
        1, count, figsize=(1.2 + 3.2 * count, 4.0), layout="constrained", squeeze=False
    )
    return figure, list(axes[0])


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


def _legend(figure: Figure, axes: list[Any]) -> None:
    """One legend for all panels, each contender once."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(5, len(entries)),
        frameon=False, fontsize=8,
    )  # fmt: skip
