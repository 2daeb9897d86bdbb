"""The paper's Table 3: top-1, top-3 and top-5 in per cent, before and after domain adaptation (arXiv 2405.15765)."""

from typing import NamedTuple


class Accuracy(NamedTuple):
    """Per cent."""

    top1: float
    top3: float
    top5: float


# By model: without adaptation, and with it.
PAPER = {
    "bert-large": (Accuracy(46.39, 66.68, 74.24), Accuracy(49.24, 70.51, 78.04)),
    "410m": (Accuracy(45.43, 66.96, 75.02), Accuracy(51.09, 73.31, 80.71)),
    "1.4b": (Accuracy(48.64, 70.87, 78.89), Accuracy(53.75, 76.59, 83.95)),
    "2.8b": (Accuracy(49.96, 72.33, 80.31), Accuracy(55.12, 78.02, 85.10)),
}
PARAMETERS = {"bert-large": 335e6, "410m": 405e6, "1.4b": 1.41e9, "2.8b": 2.78e9}  # tables and head included
