"""The columns of a study's results, each with its type and description."""

from typing import Any

import pyarrow as pa

ResultRow = dict[str, Any]  # a cell's results, by column

FORMAT = 2  # version of results.parquet; version 1 named the zero-shot columns `exam_*`
RENAMED = {
    "exam_top1": "zero_shot_top1",
    "exam_loss": "zero_shot_loss",
    "exam_likeliest_top1": "zero_shot_likeliest_top1",
}
TOP_K = ("top1", "top3", "top5")
_MEASURES = {
    **{name: f"share of test contexts whose label is among the first {name[3]}" for name in TOP_K},
    "loss": "cross-entropy on the test labels, nats",
}
_BOUNDS = {"": "", "_low": ": lower bound of the 95 % interval over cases", "_high": ": upper bound"}
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "study": (pa.string(), "name of the study"),
    "cell": (pa.string(), "name of the cell and of its folder in cells/"),
    "variant": (pa.string(), "name of the ablation; empty for the study itself"),
    "family": (pa.string(), "gpt_neox or bert"),
    "size": (pa.string(), "name in configs/sizes/"),
    "seed": (pa.int64(), "seed of the fine-tuning"),
    "parameters": (pa.int64(), "parameters of the language model"),
    "parameters_body": (pa.int64(), "parameters without embedding tables and head"),
    "start": (pa.string(), "adapted, base (not adapted) or random (untrained weights)"),
    "corpus": (pa.string(), "corpus of the adaptation; empty if not adapted"),
    "domain_weight": (pa.float64(), "share of the corpus outside the study's general text; null if not adapted"),
    "adapt_step": (pa.int64(), "updates of the adaptation; 0 for base and random"),
    "adapt_steps": (pa.int64(), "planned updates of the adaptation"),
    "finished": (pa.bool_(), "whether the adaptation reached its last update; otherwise its curve is partial"),
    "tokens": (pa.int64(), "tokens read by the adaptation"),
    "unique_tokens": (pa.int64(), "tokens of the corpus's training rows; null if not adapted"),
    "base_tokens": (pa.int64(), "tokens of the base's training by the study; null if published or random"),
    "flops_all": (pa.float64(), "operations of the adaptation: 6 N D, N all parameters"),
    "flops_body": (pa.float64(), "operations of the adaptation, N without embedding tables and head"),
    "flops_exact": (pa.float64(), "all matrix products, forward and backward, attention's full square included"),
    "domain_loss": (pa.float64(), "language-model loss on the task's held-out cases, nats per token; null for random"),
    "general_loss": (pa.float64(), "language-model loss on held-out general text; null if there is none"),
    "train_loss": (pa.float64(), "training loss of the adaptation at this step; null if not adapted"),
    "labels": (pa.int64(), "labelled contexts of the fine-tuning"),
    "epochs": (pa.float64(), "epochs of the fine-tuning"),
    "contexts": (pa.int64(), "test contexts"),
    **{
        name + end: (pa.float64(), about + bound) for name, about in _MEASURES.items() for end, bound in _BOUNDS.items()
    },
    "zero_shot_top1": (
        pa.float64(),
        "zero-shot: share of contexts that raise the sent text's likelihood more than any other text's; null if none",
    ),
    "zero_shot_loss": (pa.float64(), "zero-shot: cross-entropy of the softmax over these gains, nats; null if none"),
    "zero_shot_likeliest_top1": (
        pa.float64(),
        "zero-shot: share of contexts after which the sent text is the likeliest; null if none",
    ),
    "alignment": (pa.float64(), "share of the task's word 3-grams in the corpus; null if not adapted"),
    "seconds": (pa.float64(), "seconds of training and measuring the cell"),
}
SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"about": about}) for name, (kind, about) in COLUMNS.items()],
    metadata={"format": str(FORMAT)},
)
