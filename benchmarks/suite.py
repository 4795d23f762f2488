"""The loop: prepare, check, time, record. A contender that fails is a record, never a crash."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import cases, checks, contenders, densities, environment, problem
from benchmarks.cases import Case
from benchmarks.contenders import Contender
from benchmarks.densities import Library
from jaxmdn.cli import timing

SCHEMA = 1
# Bytes a case may need, as a multiple of its raw outputs: autodiff keeps several copies of them.
COPIES = 12


def run(
    selected: Sequence[Case],
    *,
    peers: Sequence[Library] = densities.PEERS,
    repeats: int = 21,
    budget: float = 5.0,
    quick: bool = False,
    progress: bool = True,
    minutes: float = float("inf"),
) -> dict[str, Any]:
    """Measure cases and return the report, ready for JSON.

    Args:
      selected: what to measure.
      peers: libraries that take part if they can be imported.
      repeats: samples of every time.
      budget: seconds after which a slow contender stops repeating.
      quick: coarser roofs; recorded.
      progress: whether to show a progress bar on stderr.
      minutes: after which no case is begun; those left out are named in the report.
    """
    start = time.perf_counter()
    present, described = _load(peers)
    roofs = environment.roofs(quick=quick)
    measurements: list[dict[str, Any]] = []
    bar = tqdm(selected, desc="bench", file=sys.stderr, disable=not progress, leave=False)
    for case in bar:
        bar.set_postfix_str(f"{case.operation}: {case.label}")
        if time.perf_counter() - start > 60 * minutes:
            measurements.append(_left_out(case, f"the time was up ({minutes:g} minutes)"))
            continue
        measurements += measure(case, present, repeats=repeats, budget=budget, roofs=roofs)
    return {
        "schema": SCHEMA,
        **environment.describe(tuple(dict.fromkeys(peer.package for peer in present))),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "precision": {
            "dtype": "float32 unless a case says otherwise",
            "matmul": str(jax.config.jax_default_matmul_precision or "default"),
        },
        "quick": quick,
        "minutes": None if minutes == float("inf") else minutes,
        "repeats": repeats,
        "seconds": round(time.perf_counter() - start, 1),
        "roofs": roofs,
        "peers": described,
        "measurements": measurements,
    }


def _load(peers: Sequence[Library]) -> tuple[list[Library], dict[str, dict[str, str]]]:
    """Import the peers; say of each its version, or why it is left out."""
    present, described = [], {}
    for peer in peers:
        try:
            peer.load()
        except Exception as error:  # a broken installation raises anything
            described[peer.name] = {"missing": _reason(error)}
        else:
            present.append(peer)
            described[peer.name] = {"version": environment.version(peer.package) or "unknown"}
    return present, described


def measure(
    case: Case, peers: Sequence[Library], *, repeats: int, budget: float, roofs: dict[str, Any]
) -> list[dict[str, Any]]:
    """Measure all contenders of one case; one record each."""
    needed = COPIES * 4 * case.rows * case.head.num_outputs
    free = environment.free_bytes()
    if free is not None and needed > free:
        return [_left_out(case, f"needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free")]
    arrays = problem.create(case)
    records, runners = [], []
    for contender in contenders.of_case(case, arrays, peers):
        record = _describe(case) | {
            "contender": contender.name,
            "kind": contender.kind,
            "implementation": contender.implementation,
        }
        records.append(record)
        runner = _prepare(contender, arrays, record)
        if runner is not None:
            runners.append((runner, record))
    times = timing.alternate([runner for runner, _ in runners], repeats, budget)
    for (_, record), seconds in zip(runners, times, strict=True):
        record["seconds"] = seconds
        record |= _throughput(case, record["contender"], seconds["median"], roofs)
    return records


def _describe(case: Case) -> dict[str, Any]:
    sizes = ("operation", "sweep", "rows", "components", "dim", "covariance", "link", "dtype")
    described = {name: getattr(case, name) for name in (*sizes, "hidden", "draws")}
    return described | {"case": case.label, "outputs": case.head.num_outputs}


def _left_out(case: Case, reason: str) -> dict[str, Any]:
    return _describe(case) | {"contender": "jaxmdn", "status": "left out", "reason": reason}


def _prepare(
    contender: Contender, arrays: problem.Problem, record: dict[str, Any]
) -> timing.Runner | None:
    """Compile, run once and compare with float64; None if that failed."""
    try:
        runner = contender.prepare()
        output = runner.call()
        record["status"], record["errors"] = "ok", {}
        if contender.kind != "floor" or arrays.case.operation == "training_step":
            found = checks.errors(arrays, contender.parameterization, output)
            limit = checks.tolerance(arrays.case)
            # JSON knows neither NaN nor infinity.
            record["errors"] = {k: e if abs(e) < float("inf") else None for k, e in found.items()}
            if checks.is_wrong(found, limit):
                worst = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
                record["status"] = "wrong"
                record["reason"] = f"error against float64: {worst}; the limit is {limit:g}"
    except Exception as error:  # whatever a library raises is its result
        served = not isinstance(error, NotImplementedError)
        record["status"], record["reason"] = "failed" if served else "not served", _reason(error)
        return None
    record["compile_seconds"] = runner.compile_seconds
    record["temporary_bytes"] = runner.temporary_bytes
    return runner


def _throughput(case: Case, name: str, seconds: float, roofs: dict[str, Any]) -> dict[str, Any]:
    """Rates, and the share of the device's roofs they reach."""
    items = case.rows * max(1, case.draws)
    if case.operation == "ensemble_step" and name != "one network":
        items *= cases.MEMBERS
    moved, operations = necessary_bytes(case), necessary_operations(case)
    rates: dict[str, Any] = {"rows_per_second": items / seconds}
    if moved:
        rates["bytes_per_second"] = moved / seconds
        rates["share_of_copy"] = moved / seconds / max(roofs["copy"], roofs["fresh_copy"])
    if operations:
        rates["flops_per_second"] = operations / seconds
        rates["share_of_matmul"] = operations / seconds / roofs["matmul"][case.dtype]
    return rates


def necessary_bytes(case: Case) -> int:
    """What must be read and written at least: arguments and results, once; 0 for steps."""
    size = 2 if case.dtype == "bfloat16" else 4
    targets = 4 * case.rows * case.dim
    inputs = size * case.rows * case.head.num_outputs
    if case.linear:
        inputs = size * (case.rows * case.hidden + case.hidden * case.head.num_outputs)
    if case.is_step:
        return 0
    results = {
        "log_prob": 4 * case.rows, "sample": targets * (case.draws - 1), "quantile": targets
    }.get(case.operation, inputs if case.gradient else 0)  # fmt: skip
    return inputs + targets + results


def necessary_operations(case: Case) -> int:
    """Floating-point operations of the matrix products; 0 where there are none."""
    product = 2 * case.rows * case.hidden * case.head.num_outputs
    return product * (3 if case.gradient else 1) * case.linear


def _reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
