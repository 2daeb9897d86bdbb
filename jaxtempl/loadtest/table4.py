"""The paper's Table 4: latencies with TensorRT in FP16 on an NVIDIA A10, one request at a time, in milliseconds."""

from typing import NamedTuple


class Latency(NamedTuple):
    """Peak one-minute average, P99 and maximum, in milliseconds."""

    average: float
    p99: float
    max: float


# By size of Pythia, then by requests per second (arXiv 2405.15765, Table 4).
PAPER = {
    "410m": {
        1: Latency(14.29, 30.72, 32.37),
        2: Latency(13.97, 28.90, 29.58),
        5: Latency(13.66, 26.21, 33.85),
        10: Latency(14.05, 31.84, 59.33),
        20: Latency(15.03, 34.55, 46.92),
    },
    "1.4b": {
        1: Latency(28.80, 40.95, 41.45),
        2: Latency(31.64, 59.91, 67.07),
        5: Latency(30.96, 60.65, 66.67),
        10: Latency(33.02, 79.86, 116.40),
        20: Latency(40.42, 110.96, 178.11),
    },
    "2.8b": {
        1: Latency(45.92, 70.66, 72.08),
        2: Latency(51.42, 111.43, 118.84),
        5: Latency(52.72, 121.27, 149.56),
        10: Latency(63.89, 183.26, 222.36),
        20: Latency(122.38, 371.90, 482.43),
    },
}
