"""Synthetic data of every law with known parameters, at the sizes and the noise of a study."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtempl.scaling.laws import catalog, special_forms
from jaxtempl.scaling.laws.fitting import Observations
from jaxtempl.scaling.laws.forms import Law

NOISE = 0.01  # standard deviation of log losses


class GroundTruth(NamedTuple):
    """A law with known parameters.

    Attributes:
        law: Law.
        theta: Parameters in the fit's representation.
        x: Points of a study.
        noise: Standard deviation of the log measurements.
    """

    law: Law
    theta: Float[np.ndarray, " P"]
    x: Float[np.ndarray, "N K"]
    noise: float

    @property
    def parameters(self) -> list[float]:
        """Values of the formula's parameters."""
        return [
            float(np.exp(value) if parameter.logarithm else value)
            for value, parameter in zip(self.theta, self.law.parameters, strict=True)
        ]

    def sample(self, seed: int) -> Observations:
        """Draw noisy measurements, each in its own group."""
        value, _ = self.law.log(self.theta, self.x)
        noise = np.random.default_rng(seed).normal(0, self.noise, len(value))
        return Observations(self.x, np.exp(value + noise), np.arange(len(value)))


def _grid(*axes: Float[np.ndarray, " _"]) -> Float[np.ndarray, "N K"]:
    return np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], axis=1)


SIZES = np.array([2.5e4, 8.3e4, 2.0e5, 3.3e5])  # parameters of the laptop study, without embedding tables and head
TOKENS, LABELS = np.geomspace(2e5, 6e6, 12), np.geomspace(250, 32_000, 12)

GROUND_TRUTHS = (
    GroundTruth(catalog.IN_PARAMETERS, np.array([np.exp(0.2), 2.5, 0.3]), np.geomspace(1e4, 1e7, 12)[:, None], NOISE),
    GroundTruth(catalog.IN_TOKENS, np.array([np.exp(0.2), 4.0, 0.35]), TOKENS[:, None], NOISE),
    GroundTruth(catalog.IN_COMPUTE, np.array([np.exp(0.2), 5.0, 0.2]), np.geomspace(1e11, 1e14, 12)[:, None], NOISE),
    GroundTruth(catalog.IN_LABELS, np.array([np.exp(-0.5), 3.0, 0.4]), LABELS[:, None], NOISE),
    GroundTruth(catalog.CHINCHILLA, np.array([1.0, 3.0, 0.3, 4.6, 0.35]), _grid(SIZES, TOKENS[3:]), NOISE),
    GroundTruth(catalog.KAPLANS, np.array([1.0, 0.5, 10.8, 0.2]), _grid(SIZES, TOKENS[3:]), NOISE),
    GroundTruth(catalog.JOINT, np.array([np.exp(-0.5), 5.3, 0.2, 0.4]), _grid(SIZES, LABELS[3:]), NOISE),
    GroundTruth(
        catalog.PATH,
        np.array([np.exp(-0.5), 5.3, 0.2, 0.4, 4.0, 0.35]),
        _grid(SIZES, TOKENS[3:], LABELS[[2, 6, 10]]),
        NOISE,
    ),
    GroundTruth(
        catalog.MIXTURE,
        np.array([np.exp(0.1), 3.0, 0.3, 5.0, 0.2, 0.35, -1.5, 0.3]),
        _grid(SIZES, TOKENS[[3, 7, 11]], np.array([0.05, 0.2, 0.5, 0.8, 1.0])),
        NOISE / 2,
    ),
    GroundTruth(special_forms.LOG_POWER, np.array([-3.0, 0.5, 0.6]), TOKENS[:, None], NOISE),
    GroundTruth(special_forms.SATURATING, np.array([-0.2, 5.0, 0.45]), TOKENS[:, None], NOISE),
    GroundTruth(special_forms.RECTIFIED, np.array([0.4, 6.0, 5.0, 0.8]), np.geomspace(100, 50_000, 16)[:, None], NOISE),
    GroundTruth(
        special_forms.REPEATED,
        np.array([np.exp(0.2), 6.0, 0.4, 1.5]),
        np.stack([np.tile(np.geomspace(1e5, 1e7, 10), 3), np.repeat([1e5, 4e5, 3e6], 10)], axis=1),
        NOISE,
    ),
    GroundTruth(
        special_forms.DATA_CONSTRAINED,
        np.array([1.0, 3.0, 0.3, 4.6, 0.35, 1.5, 1.5]),
        _grid(SIZES, np.geomspace(1e5, 1e7, 6), np.array([1e5, 4e5, 3e6])),
        NOISE,
    ),
)
