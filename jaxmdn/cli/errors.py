"""What the command line tells a user who asked for something impossible."""

from __future__ import annotations

import argparse


class UsageError(Exception):
    """A problem the user can fix: printed as one line, exit code 2, nothing written."""


def positive_int(text: str) -> int:
    """Parse an option that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def nonnegative_float(text: str) -> float:
    """Parse an option that measures something."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text}")
    return value


def probability(text: str) -> float:
    """Parse an option that is a probability strictly between 0 and 1."""
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text}")
    return value
