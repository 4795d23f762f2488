"""How a family's parameters come from raw outputs: one table for all families.

A family's name stands for the component class, the kind of every parameter and the constants it
needs. The kind decides the link, so that the supports hold whatever the network emits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, components
from jaxmdn.typing import Array, Float

# Kinds of parameters: any real number; a positive number (through the head's scale link and floor).
REAL, POSITIVE = "real", "positive"


class Recipe(NamedTuple):
    """A component class's name, its learnt parameters and their kinds, its constants' defaults.

    ``static`` constants are fields of the class that hold Python numbers (``base``: another
    family); ``fixable`` names parameters that may be fixed instead of learnt.
    """

    component: str
    parameters: dict[str, str]
    static: dict[str, Any] = {}
    fixable: tuple[str, ...] = ()


LOCATION = {"loc": REAL, "scale": POSITIVE}
UNIT = {"lower": 0.0, "upper": 1.0}
CONCENTRATIONS = {"concentration1": POSITIVE, "concentration0": POSITIVE}
RECIPES = {
    # the real line
    "normal": Recipe("Normal", LOCATION),
    "laplace": Recipe("Laplace", LOCATION),
    "logistic": Recipe("Logistic", LOCATION),
    "student_t": Recipe("StudentT", {**LOCATION, "df": POSITIVE}, fixable=("df",)),
    "asymmetric_laplace": Recipe(
        "AsymmetricLaplace", {**LOCATION, "asymmetry": POSITIVE}, fixable=("asymmetry",)
    ),
    # positive numbers
    "lognormal": Recipe("LogNormal", LOCATION),
    "gamma": Recipe("Gamma", {"concentration": POSITIVE, "rate": POSITIVE}),
    "weibull": Recipe("Weibull", {"concentration": POSITIVE, "scale": POSITIVE}),
    # an interval
    "beta": Recipe("Beta", CONCENTRATIONS, static=UNIT),
    "logit_normal": Recipe("LogitNormal", LOCATION, static=UNIT),
    "truncated_normal": Recipe(
        "TruncatedNormal", LOCATION, static={"lower": 0.0, "upper": math.inf}
    ),
    # the circle
    "von_mises": Recipe("VonMises", {"loc": REAL, "concentration": POSITIVE}),
    # whole numbers
    "poisson": Recipe("Poisson", {"rate": POSITIVE}),
    "negative_binomial": Recipe(
        "NegativeBinomial",
        {"rate": POSITIVE, "concentration": POSITIVE},
        fixable=("concentration",),
    ),
    "bernoulli": Recipe("Bernoulli", {"logit": REAL}),
    "discretized_logistic": Recipe(
        "DiscretizedLogistic",
        LOCATION,
        static={"lower": 0.0, "upper": 255.0, "num_bins": 256},
    ),
    # a share of zeros beside another family
    "zero_inflated": Recipe("ZeroInflated", {"logit": REAL}, static={"base": "poisson"}),
    "hurdle": Recipe("Hurdle", {"logit": REAL}, static={"base": "gamma"}),
}


@dataclasses.dataclass(frozen=True, init=False)
class Family:
    """A component family with its constants: what ``families=`` takes in place of a bare name.

    >>> from jaxmdn.heads import Family
    >>> Family("student_t", df=4.0)
    Family('student_t', df=4.0)

    Args:
      name: one of ``jaxmdn.heads.FAMILIES``.
      **constants: bounds (``lower``, ``upper``), ``num_bins``, the ``base`` beside a share of zeros
        (a name or a ``Family``), or a parameter that is fixed instead of learnt (``df``,
        ``asymmetry``, ``concentration``); see the component's class.

    Raises:
      ValueError: for an unknown name or constant.
    """

    name: str
    constants: tuple[tuple[str, Any], ...]

    def __init__(self, name: str, **constants: Any) -> None:
        checks.require_option("Family", "name", name, FAMILIES)
        recipe = RECIPES[name]
        for key in constants:
            known = (*recipe.static, *recipe.fixable)
            if not known:
                raise ValueError(f"Family: {name!r} takes no constants, got {key!r}.")
            checks.require_option(f"Family({name!r})", "constants", key, known)
        merged = {
            **recipe.static,
            **{
                key: value.item() if isinstance(value, np.generic) else value
                for key, value in constants.items()
            },
        }
        if "base" in merged:
            merged["base"] = resolve(f"Family({name!r})", merged["base"])
            if "base" in dict(merged["base"].constants) or "logit" in merged["base"].parameters:
                raise ValueError(
                    f"Family({name!r}): base must be a family of counts or positive numbers, such "
                    f"as 'poisson' or 'gamma'; got {merged['base']!r}."
                )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "constants", tuple(merged.items()))

    def __repr__(self) -> str:
        arguments = [repr(self.name), *(f"{key}={value!r}" for key, value in self.constants)]
        return f"Family({', '.join(arguments)})"

    @property
    def component(self) -> type[Any]:
        """The component class."""
        return getattr(components, RECIPES[self.name].component)

    @property
    def base(self) -> Family | None:
        """The family beside a share of zeros; None for a family that stands alone."""
        return dict(self.constants).get("base")

    @property
    def parameters(self) -> dict[str, str]:
        """Names and kinds of the parameters that the network emits."""
        fixed, recipe = dict(self.constants), RECIPES[self.name]
        own = {name: kind for name, kind in recipe.parameters.items() if name not in fixed}
        return own if self.base is None else {**self.base.parameters, **own}

    def build(self, values: dict[str, Array]) -> Any:
        """The component density with learnt parameters ``values [..., K, D]``."""
        if self.base is not None:
            inner = {name: values[name] for name in self.base.parameters}
            return self.component(base=self.base.build(inner), logit=values["logit"])
        dtype, static = next(iter(values.values())).dtype, RECIPES[self.name].static
        constants = {
            name: value if name in static else jnp.full((1, 1), value, dtype)
            for name, value in self.constants
        }
        return self.component(**values, **constants)

    def values(self, member: Any) -> dict[str, Array]:
        """Learnt parameters of a component density: what :meth:`build` takes."""
        if self.base is not None:
            return {**self.base.values(member.base), "logit": member.logit}
        return {name: getattr(member, name) for name in self.parameters}

    def from_moments(
        self, mean: Float[Array, "K D"], variance: Float[Array, "K D"]
    ) -> dict[str, Float[Array, "K D"]]:
        """Learnt parameters of the member with these moments, or the nearest there is."""
        inner = self if self.base is None else self.base
        constants = {
            name: value
            for name, value in inner.constants
            if not (name == "df" and value <= 2)  # no variance to match: as for the default
        }
        if self.base is not None:
            constants["base"] = inner.component
        return self.values(self.component.from_moments(mean, variance, **constants))


FAMILIES = tuple(RECIPES)


def resolve(function: str, family: Any) -> Family:
    """Turn a name into a :class:`Family`, or raise ``TypeError``."""
    if isinstance(family, Family):
        return family
    if not isinstance(family, str):
        raise TypeError(
            f"{function}: families must be names or jaxmdn.heads.Family, got "
            f"{type(family).__name__}; for example ('normal', Family('student_t', df=4.0))."
        )
    checks.require_option(function, "families", family, FAMILIES)
    return Family(family)
