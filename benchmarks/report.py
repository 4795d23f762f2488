"""The report as files, each whole or not there: JSON, Markdown for people, pictures."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import pictures
from benchmarks.cases import OPERATIONS, SWEEPS
from benchmarks.checks import GRADIENT_PROMISES
from benchmarks.records import (
    Groups,
    Record,
    by_case,
    curves,
    exponent,
    is_of_families,
    milliseconds,
    ratio,
    rivals,
)
from jaxmdn.cli.timing import device_title

AIM = 3.0  # how many times as long as the normal a family may take


def write(report: dict[str, Any], stem: Path, *, keep_json: bool = False) -> list[Path]:
    """Write ``stem``.json (unless it is kept), ``stem``.md and pictures; return their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figures = {f"{stem.name}-{name}.png": figure for name, figure in pictures.draw(report).items()}
    contents: dict[str, Callable[[Path], Any]] = {}
    if not keep_json:
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        contents[f"{stem.name}.json"] = functools.partial(_write_text, text)
    contents[f"{stem.name}.md"] = functools.partial(_write_text, markdown(report, list(figures)))
    contents |= {name: functools.partial(pictures.save, figure) for name, figure in figures.items()}
    for name, content in contents.items():
        replace_file(stem.parent / name, content)
    return [stem.parent / name for name in contents]


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path`` and rename: whoever looks finds the old file or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def summary(report: dict[str, Any]) -> str:
    """A few lines for the terminal: jaxmdn's times and the fastest and slowest rival's ratio."""
    records = report["measurements"]
    if is_of_families(report):
        return markdown(report)
    rows = []
    for label, group in by_case(records):
        own = group.get("jaxmdn", {})
        if own.get("sweep") != "figures" or "seconds" not in own:
            continue
        text = f"{own['operation']}  {label}: {_number(milliseconds(own))} ms"
        ordered = sorted(rivals(group).items(), key=lambda item: item[1])
        shown = dict(ordered[:1] + ordered[-1:])
        rows.append("; ".join([text, *(f"{name} {value:.2g} x" for name, value in shown.items())]))
    odd = [r for r in records if r["status"] not in ("ok", "not served")]
    rows += [f"{r['status']}: {r['contender']}, {r['operation']} {r['case']}" for r in odd]
    return "\n".join(rows)


def markdown(report: dict[str, Any], images: list[str] | None = None) -> str:
    """The report as Markdown."""
    records = report["measurements"]
    if is_of_families(report):
        return _families(report)
    parts = [_head(report), *_operations(records), *(f"![{name}]({name})" for name in images or [])]
    groups = list(by_case(records))
    parts += [_defaults(groups), _gradient_errors(groups), _scaling(records)]
    parts += [_not_measured(records), _details(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: dict[str, Any]) -> str:
    roofs, precision = report["roofs"], report["precision"]
    rates = ", ".join(f"{dtype} {r / 1e9:.0f} GFLOP/s" for dtype, r in roofs["matmul"].items())
    minutes = report.get("minutes")
    options = " --quick" * report["quick"] + (f" --minutes {minutes:g}" if minutes else "")
    variables = ", ".join(f"{name}={value}" for name, value in report["variables"].items())
    missing = "; ".join(
        f"{name} ({peer['missing']})" for name, peer in report["peers"].items() if "missing" in peer
    )
    lines = [
        f"# Benchmarks: {device_title(report['device'])}",
        "",
        f"- {report['date']}, `python -m benchmarks{options}`, {report['seconds']:.0f} s.",
        f"- {_versions(report)}.",
        f"- Precision: {precision['dtype']}; matrix products at JAX's precision "
        f'"{precision["matmul"]}".',
        f"- Measured roofs: copying {roofs['copy'] / 1e9:.1f} GB/s in place, "
        f"{roofs['fresh_copy'] / 1e9:.1f} GB/s into a new array (read and written); "
        f"matrix products {rates}.",
        f"- Times are medians of up to {report['repeats']} alternating samples in one process. In "
        "brackets: a contender's time divided by jaxmdn's. Every result was compared with float64 "
        "before it was timed.",
    ]
    lines += [f"- Environment: {variables}."] * bool(variables)
    lines += [f"- Not installed: {missing}."] * bool(missing)
    return "\n".join(lines)


def _versions(report: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in report["versions"].items())


def _table(header: str | list[str], rows: list[list[Any]]) -> str:
    names = header.split("; ") if isinstance(header, str) else header
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _section(title: str, note: str, header: str, rows: list[list[Any]]) -> str:
    """A heading, a line and a table; nothing without rows."""
    note += "\n\n" * bool(note)
    return f"## {title}\n\n{note}{_table(header, rows)}" if rows else ""


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    if value == 0 or 1e-3 <= abs(value) < 10**digits:
        return f"{value:.{digits}g}"
    return f"{value:.0f}" if 1 <= abs(value) < 1e7 else f"{value:.1e}"


def _error(errors: dict[str, float | None], name: str) -> str:
    error = errors.get(name)
    return "" if name not in errors else "not finite" if error is None else f"{error:.1e}"


def _cell(record: Record | None, own: Record | None) -> str:
    if record is None or milliseconds(record) is None:
        return record["status"] if record else ""
    text, times = _number(milliseconds(record)), ratio(record, own)
    text += f" ({_number(times)})" if times and record is not own else ""
    return text + ("" if record["status"] == "ok" else f", **{record['status']}**")


def _operations(records: list[Record]) -> list[str]:
    """One table per operation: shapes down, contenders across."""
    parts = []
    for operation, title in OPERATIONS.items():
        served = [
            r for r in records
            if (r["operation"], r["sweep"]) == (operation, "figures")
            and r["status"] != "not served"
        ]  # fmt: skip
        if not served:
            continue
        names = list(dict.fromkeys(record["contender"] for record in served))
        groups = list(by_case(served))
        rows = [
            [label, *(_cell(group.get(name), group.get("jaxmdn")) for name in names)]
            for label, group in groups
        ]
        table = _table(["N, K, D", *(f"{name}, ms" for name in names)], rows)
        notes = "\n".join(note for group in groups for note in _notes(operation, *group))
        parts.append(f"## {title}\n\n{table}" + (f"\n\n{notes}" if notes else ""))
    return parts


def _notes(operation: str, label: str, group: dict[str, Record]) -> Iterator[str]:
    """What a table does not show by itself."""
    if operation == "training_step":
        for name in ("jaxmdn", "jaxmdn, in a scan", "plain JAX", "flax.nnx.jit"):
            share = ratio(group.get("the arithmetic alone"), group.get(name))
            if share:
                yield f"- {name}: {max(0.0, 1 - share):.0%} of a step's time is not arithmetic."
    elif operation == "ensemble_step":
        times = ratio(group.get("jaxmdn"), group.get("one network"))
        if times:
            yield f"- Ten networks cost {times:.1f} times one network's step."
    elif operation.startswith("linear"):
        plain, temporary = (
            group.get(name, {}).get("temporary_bytes") for name in ("plain JAX", "jaxmdn")
        )
        if plain and temporary is not None:
            yield (
                f"- {label}: temporaries {temporary / 2**20:.2f} MiB, "
                f"{temporary / plain:.1%} of plain JAX's {plain / 2**20:.1f} MiB."
            )


def _defaults(groups: Groups) -> str:
    """Is anything chosen by default slower than the plain composition?"""
    rows = []
    for label, group in groups:
        own, plain = group.get("jaxmdn"), group.get("jaxmdn, xla")
        times = ratio(plain, own)
        if own and plain and times:
            slower = own["seconds"]["lower_quartile"] > plain["seconds"]["upper_quartile"]
            rows.append(
                [own["operation"], label, own["implementation"], _cell(own, None),
                 _cell(plain, None), _number(times), "**slower**" if slower else "no slower"]
            )  # fmt: skip
    return _section(
        'Defaults beside `implementation="xla"`',
        '"Slower" means that the quartiles of the two times do not overlap.',
        "operation; N, K, D; chosen; default, ms; xla, ms; xla / default; verdict",
        rows,
    )


def _gradient_errors(groups: Groups) -> str:
    rows = []
    for label, group in groups:
        for r in group.values():
            own = r.get("kind") in ("jaxmdn", "implementation")
            if own and "gradient" in r.get("errors", {}):
                error, limit = r["errors"]["gradient"], GRADIENT_PROMISES[r["dtype"]]
                kept = "yes" if error is not None and error <= limit else "**no**"
                shown = _error(r["errors"], "gradient")
                rows.append(
                    [r["operation"], label, r["contender"], r["implementation"], shown,
                     f"{limit:g}", kept]
                )  # fmt: skip
    return _section(
        "Gradient against float64 autodiff",
        "The largest, over arrays, of `max |g - g64| / max |g64|`.",
        "operation; N, K, D; contender; implementation; error; limit; within",
        rows,
    )


def _scaling(records: list[Record]) -> str:
    rows = [
        [sweep, size, name, f"{sizes[0]:.0f} to {sizes[-1]:.0f}",
         f"{exponent(sizes, seconds):.2f}", power]
        for sweep, (size, power) in SWEEPS.items()
        for name, (sizes, seconds) in curves(records, sweep).items()
        if len(sizes) >= 2
    ]  # fmt: skip
    return _section(
        "How the cost grows",
        "Value and gradient; the slope of log time over log size at the three largest sizes.",
        "sweep; size; contender; from, to; exponent; of the arithmetic",
        rows,
    )


def _not_measured(records: list[Record]) -> str:
    rows = [
        [r["operation"], r["case"], r["contender"], r["status"], r["reason"].replace("|", "\\|")]
        for r in records
        if r["status"] not in ("ok", "not served")
    ]
    header = "operation; N, K, D; contender; what; reason"
    return _section("Wrong, failed or left out", "", header, rows)


def _details(records: list[Record]) -> str:
    rows = []
    for r in records:
        if "seconds" not in r:
            continue
        seconds, temporary, rate = r["seconds"], r["temporary_bytes"], r.get("bytes_per_second")
        quartiles = (1e3 * seconds[f"{name}_quartile"] for name in ("lower", "upper"))
        shares = (r.get(f"share_of_{name}") for name in ("copy", "matmul"))
        rows.append(
            [r["operation"], r["case"], r["contender"], _number(milliseconds(r)),
             " to ".join(map(_number, quartiles)), seconds["repeats"],
             _number(r["compile_seconds"], 2), f"{r['rows_per_second']:.2e}",
             _number(rate and rate / 1e9), *("" if s is None else f"{s:.0%}" for s in shares),
             _number(temporary and temporary / 2**20),
             *(_error(r["errors"], name) for name in ("value", "gradient"))]
        )  # fmt: skip
    return _section(
        "All measurements",
        "GB/s: arguments and results, each counted once, over the time; "
        "shapes that fit into a cache may exceed the copy's.",
        "operation; N, K, D; contender; ms; quartiles, ms; samples; compile, s; rows/s; GB/s; "
        "of copy; of matmul; temporaries, MiB; value error; gradient error",
        rows,
    )


def _families(report: dict[str, Any]) -> str:
    """The report of ``--families``."""
    first = report["measurements"][0]
    rows = [
        [r["family"], f"{1e3 * r['seconds']['median']:.2f}", f"{r['ratio']:.2f}",
         "met" if r["ratio"] <= AIM else "**missed**", *_alone(r), f"{r['compile_seconds']:.1f}"]
        for r in report["measurements"]
    ]  # fmt: skip
    alone = "exp and others an entry; divisions; these alone, ms; " * ("floor" in first)
    return (
        "# Families: value and gradient of the mean NLL with respect to raw outputs\n\n"
        f"{device_title(report['device'])}, {report['dtype']}, {report['rows']} rows, "
        f"{report['components']} components, D = 1, {report['date']}, {_versions(report)}. "
        f"Aim: at most {AIM:g} times the normal. Median of each family's samples.\n\n"
        + _table(f"family; ms; times the normal; aim; {alone}compile, s", rows)
        + "\n"
    )


def _alone(record: dict[str, Any]) -> list[str]:
    """A family's transcendental functions for each entry, its divisions, and what both take."""
    if "floor" not in record:
        return []
    counts = dict(record["operations"])
    divisions = counts.pop("divide", 0)
    return [f"{sum(counts.values()):.1f}", f"{divisions:.1f}", f"{1e3 * record['floor']:.2f}"]
