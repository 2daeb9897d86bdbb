"""The configuration of `bin/adapt` and `bin/finetune`."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtempl.config.fields import DeviceName, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The fields that both trainings share."""

    out: str = option("", "Folder of the run (default: runs/COMMAND-SIZE).")
    weights: str = option(
        "", "Initial weights: a Hugging Face folder, a hub id, or random (default: those published for --size)."
    )
    revision: str = option("", "Branch, tag or commit of the hub id.")
    size: str = option("", "One of configs/sizes/ (default: the model of --weights or --from).")
    recipe: Literal["default", "paper"] = option(
        "default", "Hyper-parameters; paper is Table 1 or 2 exactly, float16 included."
    )
    steps: int = option(0, "Number of updates (default: as many as --epochs needs).", minimum=0)
    epochs: float = option(1.0, "Passes over the data.", minimum=0)
    batch_size: int = option(0, "Rows of an update.", minimum=1, was="batch")
    gradient_accumulation_steps: int = option(
        0, "Microbatches of an update (default: of at most 8,192 tokens a device).", minimum=0, was="accumulate"
    )
    learning_rate: float = option(0.0, "Learning rate at the peak of the schedule.", minimum=0, was="rate")
    schedule: Literal["cosine", "linear", "wsd"] = option(
        "cosine", "Decay of the learning rate to zero after warm-up; wsd holds it until --decay_at, then linear."
    )
    decay_at: int = option(
        0, "Update at which schedule wsd begins to decay (default: after four fifths of the updates).", minimum=0
    )
    warmup_ratio: float = option(
        0.0, "Share of the updates over which the learning rate rises to its peak.", minimum=0, was="warmup"
    )
    beta1: float = option(0.9, "Decay of AdamW's first moment.", minimum=0)
    beta2: float = option(0.95, "Decay of AdamW's second moment.", minimum=0)
    weight_decay: float = option(
        0.0, "Weight decay of AdamW; biases and LayerNorm scales have none.", minimum=0, was="decay"
    )
    mesh_data: int = option(
        0, "Devices of the mesh axis that shards rows only (default: the remaining devices).", "mesh.data", minimum=0
    )
    mesh_fsdp: int = option(
        0, "Devices of the mesh axis that shards rows and weights (default: as many as fit).", "mesh.fsdp", minimum=0
    )
    mesh_tensor: int = option(
        1, "Devices of the mesh axis that shards heads, feed-forward and vocabulary.", "mesh.tensor", minimum=1
    )
    remat: Literal["none", "dots", "full"] = option(
        "none",
        "Rematerialization in the backward pass: nothing, everything except matrix products (dots), or whole layers "
        "(full).",
    )
    max_grad_norm: float = option(
        1.0, "Maximum global norm of the gradient (the paper states none).", minimum=0, was="clip"
    )
    seed: int = option(0, "Seed of initial weights and of the order of the data.", minimum=0)
    save_every: int = option(
        0,
        "Updates between study checkpoints, which are kept (default: a tenth of the updates for adapt, an epoch for "
        "finetune).",
        minimum=0,
    )
    recover_minutes: float = option(10.0, "Minutes between recovery checkpoints.")
    keep: int = option(2, "Number of newest recovery checkpoints to keep.", minimum=1)
    resume: Literal["auto", "must", "never"] = option(
        "auto",
        "Resume from the newest complete checkpoint if there is one; must requires a run, never a new folder.",
    )
    tracker: Literal["tensorboard", "mlflow"] = option(
        "tensorboard", "Logger of the metrics, in addition to metrics.jsonl."
    )
    allow_change: tuple[str, ...] = option(
        (), "Names of what may change when a run resumes: a flag, dataset, start, jax, ...."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Type of the computation; auto is bf16 on accelerators and fp32 on the CPU."
    )
    coordinator: str = option("", "HOST:PORT of the first of several processes (default: from the launcher).")
    num_processes: int = option(0, "Number of processes of this training, with --coordinator.", minimum=0)
    process_id: int = option(-1, "Index of this process, from 0, with --coordinator.", minimum=-1)
    heartbeat_seconds: float = option(
        20.0, "Seconds without a heartbeat after which a process counts as dead.", minimum=1, recorded=False
    )
    verbose: bool = option(False, "Print the resolved config.", recorded=False)
    plan: bool = option(False, "Run nothing; print what this training needs on --devices of --device.", recorded=False)
    device: DeviceName = option("none", "Kind of device for --plan.", recorded=False)
    devices: int = option(1, "Number of devices for --plan.", minimum=1, recorded=False)
    mfu: float = option(
        0.0, "Share of peak FLOP/s for --plan (default: as measured, else 0.4).", minimum=0, recorded=False
    )
    price: float = option(
        0.0, "Dollars for one device hour, for --plan (default: an assumed price).", minimum=0, recorded=False
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig(TrainConfig):
    """Adapt a language model to transcripts, phase 1 (paper section 4.2)."""

    data: str = option("data", "Datasets as DIR[:WEIGHT],...; a weight is a share of the sampled rows.")
    max_steps: int = option(14_500, "Maximum updates if --steps is not given (default: Table 1).", minimum=1)
    start: str = option("", "Adapt RUN[@STEP] to continue.", "from")
    mask_documents: bool = option(False, "Mask attention between the documents of a packed row (the paper does not).")
    task_adaptive: bool = option(
        False, "Train on the labelled contexts of --data, formatted as for a classifier, instead of its packed rows."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Fine-tune a template head on the right-most token together with all weights, phase 2 (paper section 4.3)."""

    data: Path = option(Path("data"), "Folder of the dataset.")
    start: str = option("", "Adapt RUN[@STEP] to fine-tune.", "from")
    length: int = option(512, "Tokens of the window.", minimum=1)
    labels: int = option(
        0, "Number of labels, the first of one seeded permutation, so that subsets nest (default: all).", minimum=0
    )
    select: Literal["validation", "test"] = option(
        "validation",
        "Split whose loss selects the best checkpoint; test, as for the paper's BERT, is noted in every report.",
    )
    role_tags: bool = option(False, "Keep <CUSTOMER>, <SYSTEM> and <ADVOCATE> in the context (the paper removes them).")
    attention: Literal["auto", "causal", "full"] = option(
        "auto", "Attention of a GPT-NeoX classifier: causal, or full, which cannot be exported."
    )
    pooling: Literal["auto", "last", "mean", "first"] = option(
        "auto",
        "Positions that the head reads: last as in the paper (GPT-NeoX; its mean and first cannot be exported), first "
        "(BERT's default) or mean, for sentence encoders.",
    )
