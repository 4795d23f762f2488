"""Serve an exported density over HTTP, with FastAPI: sixty lines, of which the program is one.

    jaxmdn export my_model exported --output parameters --quantile 0.05 --quantile 0.95
    EXPORTED=exported uvicorn serve:app        # pip install fastapi uvicorn jax flatbuffers

    curl localhost:8000/predict -H 'content-type: application/json' -d '{"rows": [[1.0, 2.0]]}'

No jaxmdn is needed here, nor Flax: ``program.jax`` is all of it. Rows are padded to a power of two,
so that any number of them meets one of 14 compiled programs.
"""

import json
import math
import os
from pathlib import Path

import jax
import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

MOST_ROWS = 8192
FOLDER = Path(os.environ["EXPORTED"])
DESCRIPTION = json.loads((FOLDER / "description.json").read_text())
AXES = {name: shape.index("rows") for name, (_, *shape) in DESCRIPTION["outputs"].items()}
WIDTH = int(DESCRIPTION["inputs"]["x"][2])
COLUMNS = DESCRIPTION["columns"] or {"gaps": [False] * WIDTH, "categories": [[]] * WIDTH}
MAY_LACK = np.logical_or(COLUMNS["gaps"], list(map(bool, COLUMNS["categories"])))
PROGRAM = jax.export.deserialize(bytearray((FOLDER / "program.jax").read_bytes()))
predict_rows = jax.jit(PROGRAM.call)
app = FastAPI(title="a density")


class Question(BaseModel):
    """Rows of inputs, in the units of the training table; null where one is missing."""

    rows: list[list[float | None]] = Field(min_length=1, max_length=MOST_ROWS)


@app.get("/")
def description() -> dict:
    """What goes in and what comes out."""
    return DESCRIPTION


@app.post("/predict")
def predict(question: Question) -> dict:
    """Every output of the export, row by row."""
    wrong = [i for i, row in enumerate(question.rows) if len(row) != WIDTH]
    if wrong:
        found = len(question.rows[wrong[0]])
        raise HTTPException(422, f"row {wrong[0]} has {found} numbers, the model takes {WIDTH}")
    x = np.asarray(question.rows, np.float32)
    bad = np.argwhere(~np.isfinite(x) & ~(np.isnan(x) & MAY_LACK))
    if len(bad):
        raise HTTPException(422, f"row {bad[0][0]} holds a number that is not finite, or none")
    count, size = len(x), 1 << math.ceil(math.log2(len(x)))
    answers = jax.device_get(predict_rows(np.resize(x, (size, WIDTH))))
    return {n: np.moveaxis(a, AXES[n], 0)[:count].tolist() for n, a in answers.items()}
