"""jaxmdn: mixture density networks in JAX, as pure functions.

    head    = jaxmdn.NormalHead(num_components=8, event_dim=2, covariance="full")
    raw     = network(x)                         # [..., head.num_outputs]
    mixture = head(raw)                          # a pytree of constrained parameters
    lp      = jaxmdn.log_prob(mixture, y)        # [...], nats

Every public name stands once, in ``__init__.pyi``, and loads on first use: ``jaxmdn.log_prob``
needs JAX and NumPy alone, so that a broken release of Flax (``jaxmdn.nn``), Optax
(``jaxmdn.train``), distrax (``jaxmdn.interop``) or matplotlib (``jaxmdn.plots``) cannot break it.
"""

import lazy_loader

__version__ = "0.1.0"  # first: the build reads it without importing, and rooms may
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
