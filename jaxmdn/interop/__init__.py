"""Densities of other libraries, both ways: distrax, and qp for ensembles of redshift densities."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
