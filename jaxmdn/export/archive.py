"""The archive: arrays as safetensors, the rest as JSON, and a reader that is one file of NumPy.

``arrays.safetensors`` is the format of that name: eight bytes, the length L of the header as a
little-endian integer; L bytes of JSON, ``{name: {"dtype", "shape", "data_offsets"}}``; then the
arrays one after the other, row by row, little-endian. Parameters are stored bit for bit, as float32
(``F32``), under the names of the network's parts: ``trunk.layers.0.kernel [in, out]``,
``trunk.layers.0.bias``, ..., ``trunk.embedding.frequency [F, M]``, ``.phase [F, M]``,
``.kernel [F, M, E]``, ``.bias [F, E]``, ``output.linear.kernel``, ``.bias``. Of an ensemble all
have two axes more in front, ``[A, G]``: kind, network.

``description.json`` holds what else there is: ``columns`` (names, medians, which had gaps,
categories), ``standardizers``, ``network`` (widths, activation, scale of the embedding), ``head``
and ``temperature``, a factor of all scales; of an ensemble ``temperature`` has several parts,
and there are a ``floor`` and, of few rows, a ``linear`` model (``slope [E, D]``, ``intercept``,
``scale``). ``head.blocks`` says how the raw outputs are cut: name, kind, outputs, unit and shape of
each block, row by row; a positive number is ``min_scale`` plus the
``link`` of the raw one, a magnitude plus the ``magnitude_link``, and all are multiples of the unit.
``lower`` holds entries of the unit lower triangular L at ``places``: ``W = L / scale``, row by row,
and the covariance is ``W^-1 W^-T``; with ``factor`` F it is ``diag(scale^2) + F F^T``.
``reader.py`` has every formula, in float64.

The reader's functions, by the components of the mixture:

| components | ``mixture``, ``mean``, ``variance``, ``log_prob``, ``cdf``, ``quantile`` |
|---|---|
| normal, isotropic or diagonal; Student-t, Laplace, logistic | all |
| normal, full covariance (with a graph too) or low rank | all; ``cdf``, ``quantile`` by dimension |
| Poisson, negative binomial, either with extra zeros (``zero_inflated``) | all |
| others: gamma, log-normal, hurdles, classes, ... | none: ``raw`` alone |

Components of ``FactorizedHead`` may be any of the first and third rows, each output its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxmdn.export import reader
from jaxmdn.export.program import columns_of, num_inputs
from jaxmdn.heads import FactorizedHead, Family, NormalHead, to_config
from jaxmdn.heads.links import to_config as link_config
from jaxmdn.nn import MDN
from jaxmdn.train import Columns, EnsembleResult

DTYPES = {"float32": "F32", "float64": "F64"}


def write(
    folder: Path,
    result: Any,
    outputs: tuple[str, ...],
    levels: tuple[float, ...],
    columns: Columns | None,
) -> dict[str, Any]:
    """Write arrays and reader; return the description."""
    described, arrays = describe(result, columns)
    write_safetensors(folder / "arrays.safetensors", arrays)
    shutil.copyfile(reader.__file__, folder / "reader.py")
    return described


def describe(result: Any, columns: Columns | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All that a result computes with, as JSON and arrays by name."""
    model = result.model
    plain = type(model) is MDN and model.describable
    network = dict(model.arguments) if plain else {}
    if not plain or network.get("dtype") not in (None, "float32"):
        raise ValueError(
            "export.save: this format holds a jaxmdn.nn.MDN of jaxmdn's own layers that computes "
            "in float32; use format='jax' for other trunks, activations and dtypes."
        )
    ensemble, columns = isinstance(result, EnsembleResult), columns_of(result, columns)
    state = result.networks if ensemble else nnx.state(model)
    arrays = {
        ".".join(map(str, path)): np.asarray(variable.get_raw_value())
        for path, variable in nnx.to_flat_state(nnx.filter_state(state, nnx.Param))
    }
    described: dict[str, Any] = {
        "num_inputs": num_inputs(result, columns),
        "columns": None if columns is None else columns.to_config(),
        "network": network,
        "head": {**to_config(model.head), **_blocks(model.head)},
        "standardizers": {
            name: None if own is None else [own.shift.tolist(), own.scale.tolist()]
            for name, own in (("x", result.x_standardizer), ("y", result.y_standardizer))
        },
    }
    if ensemble:
        described["temperature"] = _lists(result.temperature)
        described["floor"] = np.asarray(result.floor, np.float64).tolist()
        described["linear"] = result.linear and _lists(result.linear)
    else:
        described["temperature"] = result.temperature
    return described, arrays


def _lists(part: Any) -> dict[str, Any]:
    """A dataclass of arrays as JSON."""
    return {name: np.asarray(value, np.float64).tolist() for name, value in vars(part).items()}


def _blocks(head: Any) -> dict[str, Any]:
    """How raw outputs become parameters, where the reader knows how."""
    every = list(range(head.event_dim))
    found: list[dict[str, Any]]
    if isinstance(head, NormalHead):
        names = ["loc", "scale"]
        names += {"full": ["lower"], "low_rank": ["factor"]}.get(head.covariance, [])
        found = [
            {
                "name": name,
                "kind": "positive" if name == "scale" else "real",
                "outputs": every,
                "unit": 1.0,
                "shape": list(shape),
            }
            for name, shape in zip(names, head.blocks[1:], strict=True)
        ]
        if head.covariance == "full":
            packed = np.transpose(np.tril_indices(head.event_dim, -1))
            found[-1]["places"] = packed[head.edges].tolist()
        groups = [{"family": "normal", "outputs": every}]
    elif isinstance(head, FactorizedHead) and all(_is_known(own) for own, _ in head.groups):
        found = [
            {
                "name": name,
                "kind": (meta := head.groups[g][0].parameters[name])["kind"],
                "outputs": list(head.groups[g][1]),
                "unit": [head.units[d] if meta["in_unit"] else 1.0 for d in head.groups[g][1]],
                "shape": list(shape),
            }
            for g, name, shape in head.blocks
        ]
        groups = [
            {"family": family.name, "outputs": list(own), **_constants(family)}
            for family, own in head.groups
        ]
    else:
        return {"num_outputs": head.num_outputs}
    return {
        "num_outputs": head.num_outputs,
        "num_components": head.num_components,
        "link": link_config(head.link),
        "magnitude_link": link_config(getattr(head, "magnitude_link", head.link)),
        "blocks": found,
        "groups": groups,
    }


def _is_known(family: Family) -> bool:
    return family.name in reader.FAMILIES and all(map(_is_known, family.nested.values()))


def _constants(family: Family) -> dict[str, Any]:
    """Constants, those of a base too; which it is the names of the parameters tell."""
    found: dict[str, Any] = {}
    for key, value in family.constants:
        found |= _constants(value) if isinstance(value, Family) else {key: value}
    return found


def write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The format of that name; see the module's docstring."""
    header, parts, start = {}, [], 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        kind = DTYPES[str(array.dtype)]
        parts.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
        stop = start + len(parts[-1])
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
