"""A training run in a process of its own, which is killed and goes on."""

import jax
import numpy as np
from flax import nnx

import jaxmdn
from jaxmdn import train

EPOCHS = 60


def run(folder, **options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)).astype(np.float32)
    y = (3 * x[:, :1] + rng.normal(size=(200, 1))).astype(np.float32)
    head = jaxmdn.NormalHead(2, 1)
    model = jaxmdn.nn.MDN(2, head, hidden_features=(16,), dropout=0.1, rngs=nnx.Rngs(0))
    return train.fit(
        model, x, y, num_epochs=EPOCHS, patience=None, refit=True, checkpoint=folder,
        save_every=3, resume=True, progress=False, batch_size=64, **options,
    )  # fmt: skip


def main(folder, told, outcome=None):
    """Train with a checkpoint in a folder; send each epoch's number when it is over.

    A file ``outcome`` gets the parameters and the history.
    """
    result = run(folder, callbacks=lambda epoch, record: told.send(epoch))
    if outcome:
        leaves = jax.tree.leaves(nnx.state(result.model, nnx.Param))
        np.savez(outcome, *leaves, history=result.history["valid_nll"])
