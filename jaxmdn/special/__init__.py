"""Elementwise functions of arrays with their derivatives; none of them knows a density.

| module | what it holds |
|---|---|
| ``elementary`` | series, quadrature, logarithms and exponentials that do not cancel |
| ``softplus`` | ``log(1 + e^x)`` and the logistic function's logarithm |
| ``sides`` | both tails and their derivatives from the one that is computed |
| ``gamma``, ``beta``, ``student``, ``counts``, ``circular`` | incomplete functions, and quantiles |
| ``normal`` | the logarithm of the normal tail, and moments of half a normal |
| ``log_normals`` | mean distances between log-normal variables |
| ``student_distances`` | mean distances between Student variables |
| ``unimodal`` | tails of a density that is known by its logarithm alone |
| ``waves`` | sine and cosine of an angle in turns |
| ``roots`` | where increasing functions reach a value |
"""
