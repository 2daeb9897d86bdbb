"""The names by which a command refers to a law."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtempl.errors import UserError
from jaxtempl.scaling.laws import catalog, special_forms
from jaxtempl.scaling.laws.forms import Law
from jaxtempl.scaling.laws.goodness_of_fit import MIN_DISTINCT, SPARE_POINTS

POWER = "power"  # a power law in any variable
LAWS: Mapping[str, Law] = {
    "chinchilla": catalog.CHINCHILLA,
    "kaplan": catalog.KAPLANS,
    POWER: catalog.IN_TOKENS,
    "joint": catalog.JOINT,
    "path": catalog.PATH,
    "d-cpt": catalog.MIXTURE,
    "log": special_forms.LOG_POWER,
    "bounded": special_forms.SATURATING,
    "rectified": special_forms.RECTIFIED,
    "data-constrained": special_forms.DATA_CONSTRAINED,
    "data-constrained-one-size": special_forms.REPEATED,
}


def law_of(name: str, variable: str = "tokens") -> Law:
    """Return the law of a name; `variable` is that of a power law.

    Raises:
        UserError: There is no such law.
    """
    if name not in LAWS:
        raise UserError(f"there is no law {name!r}; the laws are {', '.join(LAWS)} (see bin/scaling laws)")
    return catalog.power(variable, "X", catalog.HESTNESS) if name == POWER else LAWS[name]


class Description(NamedTuple):
    """A law for readers.

    Attributes:
        name: Name on the command line.
        formula: Formula.
        variables: Names of the variables.
        least_data: Fewest points and values that it is fitted to.
        source: Publication.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    least_data: str
    source: str


def describe() -> list[Description]:
    """Return all laws for readers."""
    return [
        Description(
            name,
            law.formula,
            ("any variable",) if name == POWER else law.variables,
            f"{len(law.parameters) + SPARE_POINTS} points, {MIN_DISTINCT} values of each variable",
            law.source,
        )
        for name, law in ((name, law_of(name)) for name in LAWS)
    ]
