"""The paper's Table 3: top-1, top-3 and top-5 before and after domain adaptation, in per cent (arXiv 2405.15765)."""

from typing import NamedTuple


class PaperAccuracy(NamedTuple):
    """Top-k accuracies of the paper, in per cent."""

    top1: float
    top3: float
    top5: float


# By model: without and with adaptation
PAPER = {
    "bert-large": (PaperAccuracy(46.39, 66.68, 74.24), PaperAccuracy(49.24, 70.51, 78.04)),
    "410m": (PaperAccuracy(45.43, 66.96, 75.02), PaperAccuracy(51.09, 73.31, 80.71)),
    "1.4b": (PaperAccuracy(48.64, 70.87, 78.89), PaperAccuracy(53.75, 76.59, 83.95)),
    "2.8b": (PaperAccuracy(49.96, 72.33, 80.31), PaperAccuracy(55.12, 78.02, 85.10)),
}
PARAMETERS = {"bert-large": 335e6, "410m": 405e6, "1.4b": 1.41e9, "2.8b": 2.78e9}  # embedding tables and head included
