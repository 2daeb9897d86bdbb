"""The settings of `bin/adapt` and `bin/finetune`."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxtempl.config.fields import DeviceName, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What both trainings share."""

    out: str = option("", "folder of the run (default: runs/COMMAND-SIZE)")
    weights: str = option("", "a Hugging Face folder or hub id, or `random` (default: the size's published ones)")
    revision: str = option("", "branch, tag or commit of the hub id")
    size: str = option("", "one of configs/sizes/")
    recipe: Literal["default", "paper"] = option("default", "paper: Table 1 or 2 to the letter, float16 included")
    steps: int = option(0, "updates (default: as many as --epochs gives)", least=0)
    epochs: float = option(1.0, "passes over the data", least=0)
    batch_size: int = option(0, "rows an update", least=1, was="batch")
    gradient_accumulation_steps: int = option(
        0, "pieces that an update's rows are computed in (default: of 8,192 tokens)", least=0, was="accumulate"
    )
    learning_rate: float = option(0.0, "peak learning rate", least=0, was="rate")
    schedule: Literal["cosine", "linear"] = option("cosine", "decay of the rate to zero after warm-up")
    warmup_ratio: float = option(0.0, "share of the updates over which the rate rises", least=0, was="warmup")
    beta1: float = option(0.9, "AdamW", least=0)
    beta2: float = option(0.95, "AdamW", least=0)
    weight_decay: float = option(0.0, "AdamW's weight decay; never on biases or LayerNorm scales", least=0, was="decay")
    mesh_data: int = option(0, "devices that rows alone are cut over (default: what is left)", "mesh.data", least=0)
    mesh_fsdp: int = option(
        0, "devices that rows and weights are cut over (default: as many as fit)", "mesh.fsdp", least=0
    )
    mesh_tensor: int = option(1, "devices that heads, feed-forward and vocabulary are cut over", "mesh.tensor", least=1)
    remat: Literal["none", "dots", "full"] = option(
        "none", "what the backward pass computes again: nothing, all but matrix products, or whole layers"
    )
    max_grad_norm: float = option(
        1.0, "greatest global gradient norm (ours: the paper states none)", least=0, was="clip"
    )
    seed: int = option(0, "of initial weights and of the order of the data", least=0)
    save_every: int = option(
        0, "updates between study checkpoints, which are kept (adapt: a tenth of them; finetune: all)", least=0
    )
    recover_minutes: float = option(10.0, "minutes between recovery checkpoints")
    keep: int = option(2, "recovery checkpoints that are kept, the newest", least=1)
    resume: Literal["auto", "must", "never"] = option("auto", "go on from the run's newest whole checkpoint")
    tracker: Literal["tensorboard", "mlflow"] = option("tensorboard", "where metrics go beside metrics.jsonl")
    allow_change: tuple[str, ...] = option(
        (), "what may differ from the run that is gone on with: a flag, dataset, start, jax, ..."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "auto: bf16 on accelerators, fp32 on the CPU")
    coordinator: str = option("", "HOST:PORT of the first of several processes (default: as the launcher says)")
    num_processes: int = option(0, "processes of this training, with --coordinator", least=0)
    process_id: int = option(-1, "this one's place among them, from 0, with --coordinator", least=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig(TrainConfig):
    """Phase 1: further language modelling on transcripts (paper section 4.2)."""

    data: str = option("data", "datasets as DIR[:WEIGHT],...; a weight is a share of the rows drawn")
    max_steps: int = option(14_500, "most updates when --steps is not given (Table 1)", least=1)
    start: str = option("", "go on from this adapt RUN[@STEP]", "from")
    mask_documents: bool = option(False, "hide the documents of a packed row from each other (the paper does not)")
    task_adaptive: bool = option(
        False, "read the labelled contexts of --data, as a classifier reads them, in place of its packed rows"
    )
    plan: bool = option(False, "run nothing; say what this training needs on --devices of --device", told=False)
    device: DeviceName = option("none", "of --plan: of which kind", told=False)
    devices: int = option(1, "of --plan: how many", least=1, told=False)
    mfu: float = option(0.0, "of --plan: share of the peak (default: as measured, else 0.4)", least=0, told=False)
    price: float = option(
        0.0, "of --plan: dollars for an hour of a device (default: an assumed one)", least=0, told=False
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Phase 2: a template head on the right-most token, all weights tuned (paper section 4.3)."""

    data: Path = option(Path("data"), "dataset")
    start: str = option("", "the adapt RUN[@STEP] to tune", "from")
    length: int = option(512, "tokens of the window", least=1)
    labels: int = option(0, "use the first N labels of one seeded permutation, so subsets nest (default: all)", least=0)
    select: Literal["validation", "test"] = option(
        "validation", "what the checkpoint of least loss is chosen on; test, as the paper's BERT, marks each report"
    )
    role_tags: bool = option(
        False, "keep <CUSTOMER>, <SYSTEM> and <ADVOCATE> in the context (the paper leaves them out)"
    )
    attention: Literal["auto", "causal", "full"] = option(
        "auto", "what positions of a Pythia's window see: those before them, or all, which is not exported"
    )
    pooling: Literal["auto", "last", "mean", "first"] = option(
        "auto", "the positions that a Pythia's head reads: the last (as the paper), or others, which is not exported"
    )
