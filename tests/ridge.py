"""Ridge regression by dense matrices: the oracle of jaxmdn.train.linear."""

import numpy as np

from jaxmdn.train.linear import MOST_FREEDOM, PENALTIES


def dense_ridge(x, y, weights):
    """Slope ``[E]``, intercept and scale of one output, by normal equations and the hat matrix."""
    count, design = weights.sum(), np.column_stack([np.ones(len(x)), x])
    gram = design.T @ (weights[:, None] * design)
    best = None
    for penalty in count * PENALTIES:
        shrunk = np.diag([0.0, *[penalty] * x.shape[1]])
        inverse = np.linalg.inv(gram + shrunk)
        solution = inverse @ design.T @ (weights * y)
        freedom = np.trace(inverse @ gram)
        loss = weights @ (y - design @ solution) ** 2
        score = loss / (1 - freedom / count) ** 2
        if freedom <= MOST_FREEDOM * count and (best is None or score < best[0]):
            best = score, solution[1:], solution[0], np.sqrt(loss / (count - freedom))
    return best[1:]
