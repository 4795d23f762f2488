"""``jaxmdn export``: a saved model as files that need no jaxmdn."""

from __future__ import annotations

import argparse
from typing import Any

from jaxmdn.cli.errors import UsageError, probability
from jaxmdn.cli.trained import Trained, model_folder
from jaxmdn.export import FORMATS, OUTPUTS, save
from jaxmdn.train import checkpoint

DEFAULT = ("parameters", "mean")


def add_parser(commands: Any) -> None:
    """Add ``export`` to the command line."""
    parser = commands.add_parser(
        "export",
        help="write a saved model as files that need no jaxmdn",
        description=(
            "Write a model as a program of JAX (jax), as arrays with a reader that needs NumPy "
            "alone (numpy), or as an ONNX graph (onnx). Inputs are the table's columns, in the "
            "order that is printed; of categories jax and onnx take the number that is printed."
        ),
    )
    parser.add_argument("model", help="the folder that `jaxmdn fit` or jaxmdn.checkpoint wrote")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--format", choices=sorted(FORMATS), default="jax")
    parser.add_argument(
        "--output", action="append", choices=OUTPUTS, metavar="NAME",
        help=f"what the program gives, one of {', '.join(OUTPUTS)}; repeatable "
        f"(default: {', '.join(DEFAULT)})",
    )  # fmt: skip
    parser.add_argument(
        "--quantile", type=probability, action="append", default=[], metavar="P",
        help="also this quantile, for example 0.95; repeatable",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    folder = model_folder(arguments.model)
    of_fit = "inputs" in checkpoint.load_notes(folder)
    trained = Trained.load(arguments.model) if of_fit else None
    result = checkpoint.load(folder) if trained is None else trained.result
    outputs = tuple(arguments.output or DEFAULT)
    levels = tuple(arguments.quantile)
    if levels and "quantiles" not in outputs:
        outputs = (*outputs, "quantiles")
    if "quantiles" in outputs and not levels:
        raise UsageError("--output quantiles needs their levels: --quantile 0.05 --quantile 0.95")
    out = save(
        arguments.out,
        result,
        outputs=outputs,
        quantiles=levels or (0.5,),
        columns=None if trained is None else trained.columns,
        format=arguments.format,
        overwrite=arguments.overwrite,
    )
    if trained is not None:
        print("\n".join(_inputs(trained)))
    for path in sorted(out.iterdir()):
        print(f"wrote   {path}")


def _inputs(trained: Trained) -> list[str]:
    """Lines that say what goes in, in order, and what comes out."""
    lines = []
    table = zip(trained.inputs.kinds.items(), trained.columns.categories, strict=True)
    for (name, kind), known in table:
        said = "" if kind == "number" else ": days since 1970-01-01"
        if known:
            said = ": " + ", ".join(f"{code} {label}" for code, label in enumerate(known))
        lines.append(f"input   {name}{said}")
    return [*lines, f"targets {', '.join(trained.targets.names)}"]
