"""Component families: one file each, none of which knows anything of mixing."""

from jaxmdn.components.base import Density
from jaxmdn.components.categorical import Categorical
from jaxmdn.components.full_normal import FullNormal
from jaxmdn.components.low_rank_normal import LowRankNormal
from jaxmdn.components.normal import Normal

__all__ = ["Categorical", "Density", "FullNormal", "LowRankNormal", "Normal"]
