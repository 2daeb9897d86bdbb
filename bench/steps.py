"""One update of a language model by this project and by transformers with torch, on whatever device there is.

Both keep float32 parameters and moments. On an accelerator both compute in bfloat16 (torch by autocast), and torch is
compiled, with its fused AdamW; on the CPU both compute in float32, and torch is not compiled.
"""

import functools
import resource
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxtempl.config import sizes, training
from jaxtempl.specs.architecture import NeoXArchitecture

RATE, DECAY = 1e-3, 0.01


class Work(NamedTuple):
    """What is trained and how.

    Attributes:
        size: one of configs/sizes/.
        rows: of a microbatch; an update's rows are computed in so many at a time.
        remat: what the backward pass computes again; for torch `none` or `full`.
    """

    size: str
    rows: int
    remat: str = "none"


class Side(NamedTuple):
    """One side, ready to train.

    Attributes:
        step: an update with these tokens [rows of the update, length]; gives its mean loss when it is done.
        peak: most bytes held so far: of the device's memory, or resident where that is the CPU.
        device: as the side calls it.
        attention: what computes it.
        program: of a microbatch's gradient, compiled; empty for torch.
    """

    step: Callable[[np.ndarray], float]
    peak: Callable[[], int]
    device: str
    attention: str
    program: Callable[[], str] = str


def architecture(size: str) -> NeoXArchitecture:
    """Of one of configs/sizes/."""
    return NeoXArchitecture(**sizes.read_size(size)["architecture"])


def jaxtempl(work: Work, length: int) -> Side:
    """This project's own compiled functions, called as `train.fit` calls them."""
    import jax

    from jaxtempl.models import factory
    from jaxtempl.parallel.mesh import MeshShape, make_mesh
    from jaxtempl.training import objectives, precision, state
    from jaxtempl.training.optimizer import adamw
    from jaxtempl.training.step import compile_step

    a, remat, mesh = architecture(work.size), _policy(work.remat), make_mesh(MeshShape(1, 1, 1))
    task = objectives.causal_lm(factory.make_graphdef(a, a.vocabulary, precision.compute_dtype("auto"), remat))
    optimizer = adamw(training.AdaptConfig(learning_rate=RATE, weight_decay=DECAY), 1000)
    params = factory.random_params(a, a.vocabulary, 0)
    functions = compile_step(task, optimizer, state.state_shardings(mesh, optimizer, params))
    holder = [state.initial_state(params, optimizer, mesh)]
    del params  # the state's are a copy or the same

    def microbatch(tokens: np.ndarray) -> dict[str, Any]:
        return jax.device_put({"tokens": tokens.astype(np.uint16), "segments": np.ones_like(tokens, np.uint16)})

    def step(tokens: np.ndarray) -> float:
        parts = np.split(tokens, len(tokens) // work.rows)
        totals = (functions.gradient(holder[0].params, microbatch(part), None) for part in parts)
        holder[0], metrics = functions.update(holder[0], functools.reduce(functions.add, totals))
        return float(metrics["loss"])

    def peak() -> int:
        stats: Any = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else _resident()

    gradient: Any = functions.gradient
    lowered = gradient.lower(holder[0].params, microbatch(np.ones((work.rows, length))), None)
    attention = next((kernel for kernel in ("cudnn", "splash") if kernel in lowered.as_text()), "xla")
    device = jax.local_devices()[0].device_kind
    return Side(step, peak, device, attention, lambda: lowered.compile().as_text())


def _policy(remat: str) -> Any:
    """The name of a policy of `stack.REMAT`; `attention`, which keeps attention's output too, is tried here first."""
    import jax

    from jaxtempl.models import scan

    def keep(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
        dots: Any = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return "dot_product_attention_fwd" in primitive.name or dots(primitive, *arguments, **parameters)

    policies: dict[Any, Any] = scan.REMAT
    policies["attention"] = keep
    return remat


def torch(work: Work, length: int) -> Side:
    """The same by transformers and torch: sdpa attention, gradients clipped at 1."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from jaxtempl.huggingface import config

    gpu = torch.cuda.is_available()
    settings = GPTNeoXConfig(**config.hugging_face_config(architecture(work.size), "lm"), use_cache=False)
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa").float().train()
    if work.remat == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=DECAY, fused=True if gpu else None
    )
    compiled: Any = torch.compile(model) if gpu else model

    def step(tokens: np.ndarray) -> float:
        batches = torch.tensor(tokens, dtype=torch.long).to(model.device).split(work.rows)
        total = 0.0
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
                loss = compiled(batch, labels=batch).loss / len(batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    device = torch.cuda.get_device_name() if gpu else "cpu"
    return Side(step, torch.cuda.max_memory_allocated if gpu else _resident, device, "sdpa")


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


SIDES: dict[str, Callable[[Work, int], Side]] = {"jaxtempl": jaxtempl, "torch": torch}
