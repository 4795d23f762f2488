"""Component families: one file each, none of which knows anything of mixing.

Every name stands once, in ``__init__.pyi``, and loads on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
