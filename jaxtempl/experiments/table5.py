"""The paper's Table 5: A/B tests of two weeks between a model and the next one."""

from typing import NamedTuple

from scipy import stats


class PaperTest(NamedTuple):
    """One row of the table.

    Attributes:
        arms: Models A and B.
        means: Mean selection times of A and B, in seconds.
        p: The p-value as printed; the unit of its test is not stated.
    """

    arms: tuple[str, str]
    means: tuple[float, float]
    p: float

    @property
    def difference(self) -> float:
        """Mean of B minus that of A, in seconds."""
        return self.means[1] - self.means[0]

    @property
    def implied_se(self) -> float:
        """Standard error that a two-sided normal test with this p-value has, in seconds."""
        return abs(self.difference) / float(stats.norm.isf(self.p / 2))


# arXiv 2405.15765, Table 5.
PAPER = (
    PaperTest(("model-v1", "model-v2"), (13.78, 13.33), 4.76e-10),
    PaperTest(("model-v2", "model-v3"), (12.98, 12.52), 9.09e-10),
    PaperTest(("model-v3", "model-v4"), (11.64, 10.91), 3.67e-27),
)
