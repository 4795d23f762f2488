"""``jaxmdn export``: a saved model as files that need no jaxmdn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxmdn.cli.errors import UsageError, probability
from jaxmdn.export import FORMATS, OUTPUTS, save
from jaxmdn.train import checkpoint, folders

DEFAULT = ("parameters", "mean")


def add_parser(commands: Any) -> None:
    """Add ``export`` to the command line."""
    parser = commands.add_parser(
        "export",
        help="write a saved model as files that need no jaxmdn",
        description=(
            "Write a model as a program of JAX (jax), as arrays with a reader that needs NumPy "
            "alone (numpy), or as an ONNX graph (onnx). Inputs are the table's numbers, then an "
            "indicator for each category, in the order that is printed."
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
    folder = folders.find(Path(arguments.model))
    if (folder / "model" / "config.json").is_file():  # the folder that `jaxmdn fit` wrote
        folder = folder / "model"
    result = checkpoint.load(folder)
    outputs = tuple(arguments.output or DEFAULT)
    levels = tuple(arguments.quantile)
    if levels and "quantiles" not in outputs:
        outputs = (*outputs, "quantiles")
    if "quantiles" in outputs and not levels:
        raise UsageError("--output quantiles needs their levels: --quantile 0.05 --quantile 0.95")
    options: dict[str, Any] = {"quantiles": levels or (0.5,)}
    out = save(
        arguments.out,
        result,
        outputs=outputs,
        format=arguments.format,
        overwrite=arguments.overwrite,
        **options,
    )
    encoding = checkpoint.load_notes(folder).get("encoding")
    if encoding is not None:
        named = [
            f"{name}={kind}" for name, all_ in encoding["categorical"].items() for kind in all_
        ]
        print(f"inputs  {', '.join([*encoding['numeric'], *named])}")
        print(f"targets {', '.join(encoding['targets'])}")
    for path in sorted(out.iterdir()):
        print(f"wrote   {path}")
