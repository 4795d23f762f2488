"""The report as Markdown, for people."""

from __future__ import annotations

from typing import Any

from benchmarks import environment
from benchmarks.cases import OPERATIONS, SWEEPS
from benchmarks.checks import GRADIENT_PROMISES
from benchmarks.records import Record, by_case, curves, exponent, milliseconds


def markdown(report: dict[str, Any], images: list[str] | None = None) -> str:
    """The report as Markdown."""
    parts = [_head(report), *_operations(report["measurements"])]
    parts += [f"![{name}]({name})" for name in images or []]
    for section in (_defaults, _gradient_errors, _scaling, _not_measured, _details):
        text = section(report["measurements"])
        if text:
            parts.append(text)
    return "\n\n".join(parts) + "\n"


def summary(report: dict[str, Any]) -> str:
    """A few lines for the terminal: jaxmdn's times and the fastest and slowest rival's ratio."""
    rows = []
    for label, group in by_case(report["measurements"]):
        own = group.get("jaxmdn", {})
        if own.get("sweep") != "figures" or "seconds" not in own:
            continue
        rivals = {
            name: record["seconds"]["median"] / own["seconds"]["median"]
            for name, record in group.items()
            if record.get("kind") in ("peer", "baseline") and "seconds" in record
        }
        text = f"{own['operation']}  {label}: {_number(milliseconds(own))} ms"
        if rivals:
            ordered = sorted(rivals.items(), key=lambda item: item[1])
            shown = dict((ordered[0], ordered[-1]))
            text += "; " + ", ".join(f"{name} {ratio:.2g} x" for name, ratio in shown.items())
        rows.append(text)
    odd = [r for r in report["measurements"] if r["status"] not in ("ok", "not served")]
    rows += [f"{r['status']}: {r['contender']}, {r['operation']} {r['case']}" for r in odd]
    return "\n".join(rows)


def _head(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    roofs, device = report["roofs"], report["device"]
    rates = ", ".join(
        f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in roofs["matmul"].items()
    )
    variables = [f"{name}={value}" for name, value in report["variables"].items()]
    missing = [
        f"{name} ({entry['missing']})"
        for name, entry in report["peers"].items()
        if "missing" in entry
    ]
    options = " --quick" * report["quick"]
    if report.get("minutes"):
        options += f" --minutes {report['minutes']:g}"
    lines = [
        f"# Benchmarks: {environment.title(device)}",
        "",
        f"- {report['date']}, `jaxmdn bench{options}`, {report['seconds']:.0f} s.",
        f"- {versions}.",
        f"- Precision: {report['precision']['dtype']}; matrix products at JAX's precision "
        f'"{report["precision"]["matmul"]}".',
        f"- Measured roofs: copying {roofs['copy'] / 1e9:.1f} GB/s in place, "
        f"{roofs['fresh_copy'] / 1e9:.1f} GB/s into a new array (read and written); "
        f"matrix products {rates}.",
        f"- Times are medians of up to {report['repeats']} alternating samples in one process. In "
        "brackets: a contender's time divided by jaxmdn's. Every result was compared with float64 "
        "before it was timed.",
    ]
    if variables:
        lines.append(f"- Environment: {', '.join(variables)}.")
    if missing:
        lines.append(f"- Not installed: {'; '.join(missing)}.")
    return "\n".join(lines)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(record: Record | None, own: Record | None) -> str:
    if record is None:
        return ""
    time = milliseconds(record)
    if time is None:
        return record["status"]
    text = _number(time)
    if own is not None and record is not own and milliseconds(own):
        text += f" ({_number(time / milliseconds(own))})"  # type: ignore[operator]
    return text + ("" if record["status"] == "ok" else f", **{record['status']}**")


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    if value == 0 or 1e-3 <= abs(value) < 10**digits:
        return f"{value:.{digits}g}"
    return f"{value:.0f}" if 1 <= abs(value) < 1e7 else f"{value:.1e}"


def _operations(records: list[Record]) -> list[str]:
    """One table per operation: shapes down, contenders across."""
    parts = []
    for operation, title in OPERATIONS.items():
        own = [r for r in records if r["operation"] == operation and r["sweep"] == "figures"]
        if not own:
            continue
        served = [record for record in own if record["status"] != "not served"]
        names = list(dict.fromkeys(record["contender"] for record in served))
        rows = [
            [label, *(_cell(group.get(name), group.get("jaxmdn")) for name in names)]
            for label, group in by_case(served)
        ]
        table = _table(["N, K, D", *(f"{name}, ms" for name in names)], rows)
        note = _notes(operation, list(by_case(served)))
        parts.append(f"## {title}\n\n{table}" + (f"\n\n{note}" if note else ""))
    return parts


def _notes(operation: str, groups: list[tuple[str, dict[str, Record]]]) -> str:
    """What a table does not show by itself."""
    lines = []
    for label, group in groups:
        times = {name: milliseconds(record) for name, record in group.items()}
        own = times.get("jaxmdn")
        if operation == "training_step":
            floor = times.get("the arithmetic alone")
            for name in ("jaxmdn", "jaxmdn, in a scan", "plain JAX", "flax.nnx.jit"):
                if floor and times.get(name):
                    share = max(0.0, 1 - floor / times[name])  # type: ignore[operator]
                    lines.append(f"- {name}: {share:.0%} of a step's time is not arithmetic.")
        elif operation == "ensemble_step" and own and times.get("one network"):
            ratio = own / times["one network"]  # type: ignore[operator]
            lines.append(f"- Ten networks cost {ratio:.1f} times one network's step.")
        elif operation.startswith("linear"):
            plain = group.get("plain JAX", {}).get("temporary_bytes")
            temporary = group.get("jaxmdn", {}).get("temporary_bytes")
            if plain and temporary is not None:
                lines.append(
                    f"- {label}: temporaries {temporary / 2**20:.2f} MiB, "
                    f"{temporary / plain:.1%} of plain JAX's {plain / 2**20:.1f} MiB."
                )
    return "\n".join(lines)


def _defaults(records: list[Record]) -> str:
    """Is anything chosen by default slower than the plain composition?"""
    rows = []
    for label, group in by_case(records):
        own, plain = group.get("jaxmdn"), group.get("jaxmdn, xla")
        if own is None or plain is None or "seconds" not in own or "seconds" not in plain:
            continue
        a, b = own["seconds"], plain["seconds"]
        slower = a["lower_quartile"] > b["upper_quartile"]
        rows.append(
            [
                own["operation"], label, str(own["implementation"]), _cell(own, None),
                _cell(plain, None), _number(b["median"] / a["median"]),
                "**slower**" if slower else "no slower",
            ]
        )  # fmt: skip
    if not rows:
        return ""
    header = [
        "operation",
        "N, K, D",
        "chosen",
        "default, ms",
        "xla, ms",
        "xla / default",
        "verdict",
    ]
    return (
        '## Defaults beside `implementation="xla"`\n\n"Slower" means that the quartiles of the two '
        "times do not overlap.\n\n" + _table(header, rows)
    )


def _gradient_errors(records: list[Record]) -> str:
    rows = []
    for label, group in by_case(records):
        for record in group.values():
            if record.get("kind") not in ("jaxmdn", "implementation"):
                continue
            if "gradient" not in record.get("errors", {}):
                continue
            error, limit = record["errors"]["gradient"], GRADIENT_PROMISES[record["dtype"]]
            kept = error is not None and error <= limit
            shown = "not finite" if error is None else f"{error:.1e}"
            rows.append(
                [record["operation"], label, record["contender"], str(record["implementation"]),
                 shown, f"{limit:g}", "yes" if kept else "**no**"]
            )  # fmt: skip
    if not rows:
        return ""
    header = ["operation", "N, K, D", "contender", "implementation", "error", "limit", "within"]
    return (
        "## Gradient against float64 autodiff\n\nThe largest, over arrays, of "
        "`max |g - g64| / max |g64|`.\n\n" + _table(header, rows)
    )


def _scaling(records: list[Record]) -> str:
    rows = []
    for sweep, (size, power) in SWEEPS.items():
        for name, (sizes, seconds) in curves(records, sweep).items():
            if len(sizes) >= 2:
                span = f"{sizes[0]:.0f} to {sizes[-1]:.0f}"
                rows.append(
                    [sweep, size, name, span, f"{exponent(sizes, seconds):.2f}", f"{power}"]
                )
    if not rows:
        return ""
    header = ["sweep", "size", "contender", "from, to", "exponent", "of the arithmetic"]
    return (
        "## How the cost grows\n\nValue and gradient; the slope of log time over log size at the "
        "three largest sizes.\n\n" + _table(header, rows)
    )


def _not_measured(records: list[Record]) -> str:
    rows = [
        [record["operation"], record["case"], record["contender"], record["status"],
         record["reason"].replace("|", "\\|")]
        for record in records
        if record["status"] not in ("ok", "not served")
    ]  # fmt: skip
    if not rows:
        return ""
    header = ["operation", "N, K, D", "contender", "what", "reason"]
    return "## Wrong, failed or left out\n\n" + _table(header, rows)


def _details(records: list[Record]) -> str:
    header = [
        "operation", "N, K, D", "contender", "ms", "quartiles, ms", "samples", "compile, s",
        "rows/s", "GB/s", "of copy", "of matmul", "temporaries, MiB", "value error",
        "gradient error",
    ]  # fmt: skip
    rows = []
    for record in records:
        if "seconds" not in record:
            continue
        seconds, errors = record["seconds"], record["errors"]
        quartiles = (1e3 * seconds["lower_quartile"], 1e3 * seconds["upper_quartile"])
        temporary = record["temporary_bytes"]
        gigabytes = record.get("bytes_per_second")
        rows.append(
            [
                record["operation"], record["case"], record["contender"],
                _number(1e3 * seconds["median"]), " to ".join(map(_number, quartiles)),
                str(seconds["repeats"]), _number(record["compile_seconds"], 2),
                f"{record['rows_per_second']:.2e}",
                "" if gigabytes is None else _number(gigabytes / 1e9),
                _percent(record.get("share_of_copy")), _percent(record.get("share_of_matmul")),
                "" if temporary is None else _number(temporary / 2**20),
                _error(errors, "value"), _error(errors, "gradient"),
            ]
        )  # fmt: skip
    return (
        "## All measurements\n\nGB/s: arguments and results, each counted once, over the time; "
        "shapes that fit into a cache may exceed the copy's.\n\n" + _table(header, rows)
        if rows
        else ""
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _error(errors: dict[str, float | None], name: str) -> str:
    if name not in errors:
        return ""
    error = errors[name]
    return "not finite" if error is None else f"{error:.1e}"
