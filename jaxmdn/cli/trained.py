"""What the folder of ``jaxmdn fit`` holds: a density, and how a table becomes its inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxmdn.cli import evaluate
from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.inputs import Inputs
from jaxmdn.cli.reading import Format
from jaxmdn.cli.targets import Targets
from jaxmdn.train import Columns, EnsembleResult, FitResult, checkpoint, folders


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained density of tables.

    Attributes:
      result: of one network, or of an ensemble.
      inputs, targets: which columns they are.
      columns: what becomes of gaps and categories.
      form: how the file of the training table was written.
    """

    result: FitResult | EnsembleResult
    inputs: Inputs
    targets: Targets
    columns: Columns
    form: Format

    @classmethod
    def load(cls, path: str) -> Trained:
        """Read a folder, or raise ``UsageError``."""
        folder = model_folder(path)
        try:
            result, notes = checkpoint.load(folder), checkpoint.load_notes(folder)
        except (FileNotFoundError, ValueError) as error:
            raise UsageError(str(error)) from None
        try:
            return cls(
                result,
                Inputs(**notes["inputs"]),
                Targets(**notes["targets"]),
                Columns.from_config(notes["columns"]),
                Format(**notes["format"]),
            )
        except (KeyError, TypeError):
            raise UsageError(
                f"{path} was not written by this `jaxmdn fit`: it does not say how a table's "
                f"columns become inputs. Load it in Python with jaxmdn.train.checkpoint.load."
            ) from None

    def save(self, folder: Path) -> None:
        """Write a folder that does not exist."""
        notes = {
            "inputs": dataclasses.asdict(self.inputs),
            "targets": dataclasses.asdict(self.targets),
            "format": dataclasses.asdict(self.form),
            "columns": self.columns.to_config(),
        }
        checkpoint.save(folder, self.result, notes=notes)

    def rows(self, frame: pd.DataFrame) -> Any:
        """A table's inputs as ``result.predict`` takes them: an ensemble reads the table itself."""
        prepared = self.inputs.prepare(frame)
        if isinstance(self.result, EnsembleResult):
            return prepared
        return np.asarray(self.columns(prepared), np.float64)

    def is_known(self, frame: pd.DataFrame) -> np.ndarray:
        """Whether each row has all that no row lacked in training, ``[N]``."""
        return is_known(self.columns, self.inputs.prepare(frame))

    def predict(self, frame: pd.DataFrame) -> Any:
        """The density of each row, in the targets' own units."""
        return self.result.predict(self.rows(frame))

    def log_prob(self, frame: pd.DataFrame, y: np.ndarray) -> np.ndarray:
        """Log-density of targets ``y [N, D]``, ``[N]``, nats."""
        return np.asarray(self.result.log_prob(self.rows(frame), self.targets.whole(y)))

    def scores(self, model: str, density: Any, y: np.ndarray) -> list[dict[str, Any]]:
        """Rows of the table of scores of a density ``[N]``: as its targets ask for."""
        if self.targets.classes:
            return evaluate.class_scores(model, density, y.astype(int), self.targets.names[0])
        return evaluate.scores(model, density, y, self.targets.names)


def is_known(columns: Columns, prepared: pd.DataFrame) -> np.ndarray:
    """Whether rows have all that no row lacked in training, ``[N]``."""
    numbers: Any = np.asarray(columns(prepared), np.float64)
    return ~np.isnan(numbers).any(axis=1)


def model_folder(path: str) -> Path:
    """The saved model in the folder that ``jaxmdn fit`` wrote, or the folder itself."""
    folder = folders.find(Path(path))
    inner = folder / "model"
    return inner if (inner / "config.json").is_file() else folder
