"""The command line: ``jaxmdn demo``, ``jaxmdn fit``, ``jaxmdn predict``, ``jaxmdn bench``."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from jaxmdn._version import __version__
from jaxmdn.cli.errors import UsageError

COMMANDS = ("demo", "fit", "predict", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2: a problem the user can fix)."""
    parser = argparse.ArgumentParser(
        prog="jaxmdn", description="Mixture density networks: predict a distribution, not a number."
    )
    parser.add_argument("--version", action="version", version=f"jaxmdn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    try:
        # A command named outright needs no more than its own packages.
        for name in argv[:1] if argv and argv[0] in COMMANDS else COMMANDS:
            importlib.import_module(f"jaxmdn.cli.{name}").add_parser(commands)
    except ImportError as error:
        print(
            f"jaxmdn: the command line needs {error.name or error}; install it with: "
            f"pip install 'jaxmdn[cli]'",
            file=sys.stderr,
        )
        return 2
    arguments = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # one line, without the source location
            arguments.run(arguments)
    except UsageError as error:
        print(f"jaxmdn {arguments.command}: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"jaxmdn {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\njaxmdn {arguments.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {message}", file=sys.stderr)
