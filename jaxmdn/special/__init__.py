"""Elementwise functions of arrays with their derivatives; none of them knows a density.

| module | what it holds |
|---|---|
| ``elementary`` | logarithms and exponentials that do not cancel |
| ``gamma``, ``beta``, ``student``, ``counts``, ``circular`` | incomplete functions, and quantiles |
| ``student_distances`` | mean distances between Student variables |
| ``roots`` | where increasing functions reach a value |
"""
