"""Training with Optax: pure steps for your own loop, ``fit`` for the common case, checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
