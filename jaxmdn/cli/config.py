"""``--config FILE``: options of a command in a TOML file, by the same names."""

from __future__ import annotations

import argparse
import difflib
import tomllib
from pathlib import Path
from typing import Any

from jaxmdn.cli.errors import UsageError


def expand(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse a command line with the options of its ``--config`` file before its own.

    What the command line sets itself counts; a list is an option given several times.

        file = "houses.csv"
        target = ["price:lognormal"]
        epochs = 200
        quiet = true

    Raises:
      UsageError: for a file that cannot be read, or an option that the command does not have.
    """
    given = parser.parse_args(argv)
    path = getattr(given, "config", None)
    if path is None:
        return given
    own = {name: value for name, value in vars(given).items() if name not in ("command", "run")}
    bare = vars(parser.parse_args(argv[:1]))
    before: list[str] = []
    for key, value in _read(path).items():
        name = key.replace("-", "_")
        if name not in own or name == "config":
            close = difflib.get_close_matches(name, own, 1)
            hint = f" Did you mean {close[0].replace('_', '-')!r}?" if close else ""
            raise UsageError(f"--config {path}: {argv[0]} has no option {key!r}.{hint}")
        if own[name] == bare[name]:
            before += _words(path, key, value)
    return parser.parse_args([argv[0], *before, *argv[1:]])


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from None


def _words(path: str, key: str, value: Any) -> list[str]:
    """An option as the words of a command line."""
    if isinstance(value, dict):
        raise UsageError(f"--config {path}: [{key}] is a section; name options at the top.")
    if isinstance(value, list):
        return [word for part in value for word in _words(path, key, part)]
    if key == "file":
        return [str(value)]
    option = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else []
    return [f"{option}={value}"]
