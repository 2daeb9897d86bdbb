"""The catalog of laws that are sums of powers, with their publications.

Symbols: N parameters without embedding tables and head, D tokens or labels, F labels next to tokens, C operations,
r share of domain text.
"""

import numpy as np

from jaxtempl.scaling.laws.forms import PowerSum, exponent, floor, scale

HOFFMANN = "Hoffmann et al., 2022, arXiv 2203.15556"
KAPLAN = "Kaplan et al., 2020, arXiv 2001.08361"
ISIK = "Isik et al., 2024, arXiv 2402.04177"
ZHANG = "Zhang et al., 2024, arXiv 2402.17193"
QUE = "Que et al., 2024, arXiv 2406.01375"
HESTNESS = "Hestness et al., 2017, arXiv 1712.00409"
SMALLEST_SHARE = 0.01  # added to a share, which keeps it positive (Que et al., equation 7)

FLOOR = floor()


def power(variable: str, symbol: str, source: str) -> PowerSum:
    """Return the law L = E + A / X^a: a power law with a floor."""
    return PowerSum(
        f"power law in {variable}",
        f"L({symbol}) = E + A / {symbol}^a",
        source,
        (variable,),
        (FLOOR, scale("A"), exponent("a")),
        (lambda x: {"A": 1.0, "a": -np.log(x[:, 0])},),
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
    (FLOOR, scale("A"), exponent("a"), scale("B"), exponent("b")),
    (
        lambda x: {"A": 1.0, "a": -np.log(x[:, 0])},
        lambda x: {"B": 1.0, "b": -np.log(x[:, 1])},
    ),
)
KAPLANS = PowerSum(
    "Kaplan's law",
    "L(N, D) = (K / N^p + M / D)^a",
    f"{KAPLAN}, equation 1.5: K = Nc^p, p = aN / aD, M = Dc, a = aD",
    ("parameters", "tokens"),
    (scale("K", linear=False), exponent("p"), scale("M", linear=False), exponent("a", 0.6, minimum=1e-3)),
    (
        lambda x: {"K": 1.0, "p": -np.log(x[:, 0])},
        lambda x: {"M": 1.0, "": -np.log(x[:, 1])},
    ),
    floor=False,
    outer=True,
)
JOINT = PowerSum(
    "joint law of parameters and labels",
    "L(N, D) = E + A / (N^a D^b)",
    ZHANG,
    ("parameters", "labels"),
    (FLOOR, scale("A"), exponent("a"), exponent("b")),
    (lambda x: {"A": 1.0, "a": -np.log(x[:, 0]), "b": -np.log(x[:, 1])},),
)
PATH = PowerSum(
    "law of the whole path",
    "L(N, D, F) = E + A / (N^a F^f) + B / D^b",
    f"the joint law of {ZHANG}, and the term in tokens of {ISIK}",
    ("parameters", "tokens", "labels"),
    (FLOOR, scale("A"), exponent("a"), exponent("f"), scale("B"), exponent("b")),
    (
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
        scale("A"),
        exponent("a"),
        scale("B"),
        exponent("e"),
        exponent("b"),
        scale("C"),
        exponent("c"),
    ),
    (
        lambda x: {"A": 1.0, "a": -np.log(x[:, 0])},
        lambda x: {"B": 1.0, "e": np.log(x[:, 2] + SMALLEST_SHARE), "b": -np.log(x[:, 1])},
        lambda x: {"C": 1.0, "c": -np.log(x[:, 2] + SMALLEST_SHARE)},
    ),
)
