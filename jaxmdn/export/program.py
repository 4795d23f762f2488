"""The program from a table of inputs to answers in the target's unit, and ``jax.export`` of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmdn
from jaxmdn.mixture import Mixture
from jaxmdn.train import Columns, EnsembleResult, FitResult, Standardizer
from jaxmdn.train.predictor import Predictor
from jaxmdn.train.standardize import to_unit
from jaxmdn.typing import Array

OUTPUTS = ("parameters", "mean", "std", "quantiles", "log_prob", "cdf")
OF_TARGETS = ("log_prob", "cdf")
PLATFORMS = ("cpu", "cuda")


def columns_of(result: Any, columns: Columns | None) -> Columns | None:
    """What becomes of the table's columns; refuses what does not fit the network."""
    if isinstance(result, EnsembleResult):
        return result.columns
    if columns is not None:
        own, taken = len(columns.sources), num_inputs(result, None)
        if own != taken:
            raise ValueError(
                f"export.save: columns makes {own} numbers of a row, the network takes {taken}; "
                f"pass the Columns that its rows were prepared with."
            )
    return columns


def num_inputs(result: Any, columns: Columns | None) -> int:
    """How many numbers a row of the table holds; refuses what is no table of numbers."""
    if columns is not None:
        return len(columns.medians)
    if isinstance(result.x_standardizer, Standardizer):
        return len(result.x_standardizer.shift)
    arguments = dict(getattr(result.model, "arguments", None) or {})
    if result.x_standardizer is not None or "in_features" not in arguments:
        raise ValueError(
            "export.save: the network's inputs are no single table of numbers; export its function "
            "with jax.export yourself."
        )
    return int(arguments["in_features"])


def make_program(
    result: FitResult | EnsembleResult,
    outputs: tuple[str, ...],
    levels: tuple[float, ...],
    columns: Columns | None = None,
) -> Callable[..., dict[str, Array]]:
    """``f(x)``, or ``f(x, y)`` where an output is one of targets: a flat dictionary of arrays."""
    predictor, x_map, y_map = Predictor.of(result), result.x_standardizer, result.y_standardizer
    columns = columns_of(result, columns)

    def answer(density: Any, output: str, y: Any) -> dict[str, Array]:
        if output == "parameters":
            return parameters(density)
        if output == "std":
            return {output: jnp.sqrt(jaxmdn.variance(density))}
        if output == "quantiles":
            levels_ = jnp.asarray(np.asarray(levels), density.dtype)
            return {output: jaxmdn.quantile(density, levels_)}
        rows = (y,) if output in OF_TARGETS else ()
        return {output: getattr(jaxmdn, output)(density, *rows)}

    def program(x: Array, *y: Array) -> dict[str, Array]:
        x = x if columns is None else columns.spread(x)
        density = predictor(x if x_map is None else x_map(x))
        if y_map is not None:
            density = to_unit(density, y_map)
        found = [answer(density, output, *(y or (None,))) for output in outputs]
        return {name: value for part in found for name, value in part.items()}

    return program


def parameters(density: Any) -> dict[str, Array]:
    """Every parameter by its name, and the weights where logits are weights' logarithms."""
    found = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(density)
    }
    if isinstance(density, Mixture):
        del found["logits"]
        found["weights"] = density.weights()
    return found


def write(
    folder: Path,
    result: Any,
    outputs: tuple[str, ...],
    levels: tuple[float, ...],
    columns: Columns | None,
) -> dict[str, Any]:
    """Write ``program.jax``; return what the description says of it."""
    columns = columns_of(result, columns)
    function, width = make_program(result, outputs, levels, columns), num_inputs(result, columns)
    (rows,) = jax.export.symbolic_shape("rows")
    arguments = {"x": jax.ShapeDtypeStruct((rows, width), jnp.float32)}
    if set(outputs) & set(OF_TARGETS):
        event_dim = result.model.head.event_dim
        arguments["y"] = jax.ShapeDtypeStruct((rows, event_dim), jnp.float32)
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments.values())
    try:
        data = exported.serialize()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"export.save: format 'jax' needs {error.name}; pip install 'jaxmdn[export]'."
        ) from None
    (folder / "program.jax").write_bytes(data)
    shapes = jax.tree.unflatten(exported.out_tree, exported.out_avals)

    def said(values: dict[str, Any]) -> dict[str, Any]:
        return {name: [str(a.dtype), *map(str, a.shape)] for name, a in values.items()}

    return {
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "inputs": said(arguments),
        "outputs": said(shapes),
        "quantiles": list(levels),
        "columns": None if columns is None else columns.to_config(),
    }
