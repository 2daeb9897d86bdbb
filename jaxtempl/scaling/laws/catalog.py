"""The catalog of laws that are sums of powers, with their publications.

Symbols: N parameters without embedding tables and head, D tokens or labels, F labels next to tokens, C operations,
r share of domain text.
"""

import numpy as np

from jaxtempl.scaling.laws.forms import LawParameter, PowerSum

HOFFMANN = "Hoffmann et al., 2022, arXiv 2203.15556"
KAPLAN = "Kaplan et al., 2020, arXiv 2001.08361"
ISIK = "Isik et al., 2024, arXiv 2402.04177"
ZHANG = "Zhang et al., 2024, arXiv 2402.17193"
QUE = "Que et al., 2024, arXiv 2406.01375"
HESTNESS = "Hestness et al., 2017, arXiv 1712.00409"
SMALLEST_SHARE = 0.01  # added to a share, which keeps it positive (Que et al., equation 7)

FLOOR = LawParameter("E", True, -4.0, 1.5)


def _scale(name: str, high: float = 12.0) -> LawParameter:
    return LawParameter(name, True, -2.0, high)


def _exponent(name: str) -> LawParameter:
    return LawParameter(name, False, 0.05, 1.2)


def power(variable: str, symbol: str, source: str) -> PowerSum:
    """Return the law L = E + A / X^a: a power law with a floor."""
    return PowerSum(
        f"power law in {variable}",
        f"L({symbol}) = E + A / {symbol}^a",
        source,
        (variable,),
        (FLOOR, _scale("A"), _exponent("a")),
        (lambda x: {"E": 1.0}, lambda x: {"A": 1.0, "a": -np.log(x[:, 0])}),
    )


IN_PARAMETERS = power("parameters", "N", KAPLAN)
IN_TOKENS = power("tokens", "D", f"{ISIK}; {KAPLAN}")
IN_COMPUTE = power("operations", "C", KAPLAN)
IN_LABELS = power("labels", "D", HESTNESS)

CHINCHILLA = PowerSum(
    "Chinchilla's law",
    "L(N, D) = E + A / N^a + B / D^b",
    HOFFMANN,
    ("parameters", "tokens"),
    (FLOOR, _scale("A"), _exponent("a"), _scale("B"), _exponent("b")),
    (
        lambda x: {"E": 1.0},
        lambda x: {"A": 1.0, "a": -np.log(x[:, 0])},
        lambda x: {"B": 1.0, "b": -np.log(x[:, 1])},
    ),
)
KAPLANS = PowerSum(
    "Kaplan's law",
    "L(N, D) = (K / N^p + M / D)^a",
    f"{KAPLAN}, equation 1.5: K = Nc^p, p = aN / aD, M = Dc, a = aD",
    ("parameters", "tokens"),
    (_scale("K", 20.0), _exponent("p"), _scale("M", 20.0), LawParameter("a", False, 0.03, 0.5)),
    (
        lambda x: {"K": 1.0, "p": -np.log(x[:, 0])},
        lambda x: {"M": 1.0, "": -np.log(x[:, 1])},
    ),
    outer=True,
)
JOINT = PowerSum(
    "joint law of parameters and labels",
    "L(N, D) = E + A / (N^a D^b)",
    ZHANG,
    ("parameters", "labels"),
    (FLOOR, _scale("A"), _exponent("a"), _exponent("b")),
    (lambda x: {"E": 1.0}, lambda x: {"A": 1.0, "a": -np.log(x[:, 0]), "b": -np.log(x[:, 1])}),
)
PATH = PowerSum(
    "law of the whole path",
    "L(N, D, F) = E + A / (N^a F^f) + B / D^b",
    f"the joint law of {ZHANG}, and the term in tokens of {ISIK}",
    ("parameters", "tokens", "labels"),
    (FLOOR, _scale("A"), _exponent("a"), _exponent("f"), _scale("B"), _exponent("b")),
    (
        lambda x: {"E": 1.0},
        lambda x: {"A": 1.0, "a": -np.log(x[:, 0]), "f": -np.log(x[:, 2])},
        lambda x: {"B": 1.0, "b": -np.log(x[:, 1])},
    ),
)
MIXTURE = PowerSum(
    "D-CPT law",
    "L(N, D, r) = E + A / N^a + B r^e / D^b + C / (r + 0.01)^c",
    QUE,
    ("parameters", "tokens", "domain share"),
    (
        FLOOR,
        _scale("A"),
        _exponent("a"),
        _scale("B"),
        LawParameter("e", False, 0.05, 1.0),
        _exponent("b"),
        LawParameter("C", True, -4.0, 2.0),
        LawParameter("c", False, 0.05, 1.0),
    ),
    (
        lambda x: {"E": 1.0},
        lambda x: {"A": 1.0, "a": -np.log(x[:, 0])},
        lambda x: {"B": 1.0, "e": np.log(x[:, 2] + SMALLEST_SHARE), "b": -np.log(x[:, 1])},
        lambda x: {"C": 1.0, "c": -np.log(x[:, 2] + SMALLEST_SHARE)},
    ),
)
