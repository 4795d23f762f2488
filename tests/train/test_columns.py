"""Gaps and categories of a table against pandas' own median and indicators."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxmdn.export import reader
from jaxmdn.train import Columns, columns

FRAME = pd.DataFrame(
    {
        "size": [1.0, np.nan, 4.0, 8.0],
        "kind": ["b", "a", None, "b"],
        "count": pd.array([3, 4, 5, 6], dtype="Int64"),
        "code": [7, 7, 9, 11],
    }
)


def test_a_table_with_gaps_and_categories():
    columns = Columns.fit(FRAME, categorical=["code"])
    found = columns(FRAME)
    indicators = pd.get_dummies(FRAME.kind).to_numpy(float)
    exact = np.column_stack(
        [
            FRAME["size"].fillna(FRAME["size"].median()),
            FRAME["size"].isna(),
            indicators,
            FRAME.kind.isna(),
            FRAME["count"].astype(float),
            pd.get_dummies(FRAME.code.astype(str))[["11", "7", "9"]],
        ]
    )
    np.testing.assert_array_equal(found, exact)
    assert columns.sources.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3]
    assert columns.changes
    again = Columns.from_config(json.loads(json.dumps(columns.to_config())))
    np.testing.assert_array_equal(again(FRAME), exact)


def test_pandas_own_gaps():
    """``pd.NA`` is neither equal to itself nor not."""
    table = pd.DataFrame(
        {"kind": pd.array(["a", pd.NA, "b"], dtype="string"), "n": [1.0, 2.0, 3.0]}
    )
    for own in (table, table.astype({"kind": object})):
        found = Columns.fit(own)(own)
        np.testing.assert_array_equal(found, [[1, 0, 0, 1], [0, 0, 1, 2], [0, 1, 0, 3]])
    for label in (columns._label, reader.label):
        assert {label(value) for value in (None, np.nan, pd.NA, pd.NaT)} == {""}
        assert {label(value) for value in (3, 3.0, "3", np.int64(3))} == {"3"}


def test_new_rows():
    """A category never met is all zeros; a gap that was never met stays one; columns have names."""
    columns = Columns.fit(FRAME, categorical=["code"])
    new = FRAME[["code", "count", "kind", "size"]].iloc[:2].assign(kind="z", code=[9.0, np.nan])
    new["count"] = [1.5, np.nan]
    found = columns(new)
    np.testing.assert_array_equal(
        found, [[1, 0, 0, 0, 0, 1.5, 0, 0, 1], [4, 1, 0, 0, 0, np.nan, 0, 0, 0]]
    )


def test_arrays():
    x = np.array([[1.0, 2.0], [np.nan, 3.0], [5.0, 2.0]])
    columns = Columns.fit(x, categorical=[-1])
    np.testing.assert_array_equal(columns(x), [[1, 0, 1, 0], [3, 1, 0, 1], [5, 0, 1, 0]])
    plain = x[[0, 2]].astype(np.float32)
    columns = Columns.fit(plain)
    assert not columns.changes
    assert columns(plain) is plain


def test_rows_of_weight_zero_do_not_count():
    x = np.array([[1.0, 4.0], [3.0, np.nan], [9.0, 5.0]])
    columns = Columns.fit(x, np.array([1.0, 0.0, 2.0]), categorical=[1])
    assert columns.categories == ((), ("4", "5"))
    assert columns.gaps == (False, False)
    assert columns.medians[0] == 5.0


@pytest.mark.parametrize(
    ("x", "options", "kind", "message"),
    [
        (
            np.zeros(3),
            {},
            ValueError,
            r"x must be an array \[N, columns\], got \[3\]",
        ),
        (np.full((3, 2), np.nan), {}, ValueError, "column 0 of x holds nothing"),
        (np.array([[1.0], [np.inf]]), {}, ValueError, "row 1, column 0 is inf"),
        (np.zeros((3, 2)), {"categorical": [2]}, ValueError, "names column 2; x has 0 to 1"),
        (np.zeros((3, 2)), {"categorical": "ab"}, TypeError, r"sequence such as \['ab'\]"),
        (FRAME, {"categorical": ["nobody"]}, ValueError, "x has .*'size'"),
        (pd.DataFrame({"when": [pd.Timestamp("2026-01-01")]}), {}, TypeError, "turn times into"),
    ],
)
def test_errors(user_errors, x, options, kind, message):
    with pytest.raises(kind, match=message):
        Columns.fit(x, **options)


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"predict: x must have shape \[N, 2\], got \[3, 1\]"):
        Columns.fit(np.zeros((3, 2)))(np.zeros((3, 1)), function="predict")
    with pytest.raises(ValueError, match="x must have 4 columns, got 2"):
        Columns.fit(FRAME)(np.zeros((3, 2)))
