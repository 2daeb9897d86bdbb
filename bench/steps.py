"""One update of a language model by this project and by transformers with torch, on the available device.

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


class StepConfig(NamedTuple):
    """The model of a step and how it is computed.

    Attributes:
        size: One of configs/sizes/.
        rows: Rows of a microbatch.
        remat: What the backward pass recomputes; for torch `none` or `full`.
    """

    size: str
    rows: int
    remat: str = "none"


class Side(NamedTuple):
    """One side of the comparison, ready to train.

    Attributes:
        step: Runs an update with tokens [rows of the update, length] and returns its mean loss once it is done.
        peak: Returns the peak bytes so far: of the device's memory, or resident on the CPU.
        device: Name of the device.
        attention: Name of the attention kernel.
        program: Returns the compiled program of a microbatch's gradient; empty for torch.
    """

    step: Callable[[np.ndarray], float]
    peak: Callable[[], int]
    device: str
    attention: str
    program: Callable[[], str] = str


def architecture(size: str) -> NeoXArchitecture:
    """Return the architecture of one of configs/sizes/."""
    return NeoXArchitecture(**sizes.read_size(size)["architecture"])


def jaxtempl(step_config: StepConfig, length: int) -> Side:
    """Return this project's side of one of configs/sizes/."""
    return jaxtempl_of(architecture(step_config.size), step_config.rows, step_config.remat, length)


def jaxtempl_of(a: NeoXArchitecture, rows: int, remat: str, length: int) -> Side:
    """Return this project's side of any shape: the compiled functions, called as `loop.fit` calls them."""
    import jax

    from jaxtempl.models import factory
    from jaxtempl.parallel.mesh import MeshShape, make_mesh
    from jaxtempl.training import objectives, precision, state
    from jaxtempl.training.optimizer import adamw
    from jaxtempl.training.step import compile_step

    policy, mesh = _policy(remat), make_mesh(MeshShape(1, 1, 1))
    objective = objectives.causal_lm(factory.make_graphdef(a, a.vocabulary, precision.compute_dtype("auto"), policy))
    optimizer = adamw(training.AdaptConfig(learning_rate=RATE, weight_decay=DECAY), 1000)
    params = factory.random_params(a, a.vocabulary, 0)
    functions = compile_step(objective, optimizer, state.state_shardings(mesh, optimizer, params))
    holder = [state.initial_state(params, optimizer, mesh)]
    del params  # frees them, if the state has copies

    def microbatch(tokens: np.ndarray) -> dict[str, Any]:
        return jax.device_put({"tokens": tokens.astype(np.uint16), "segments": np.ones_like(tokens, np.uint16)})

    def step(tokens: np.ndarray) -> float:
        parts = np.split(tokens, len(tokens) // rows)
        totals = (functions.gradient(holder[0].params, microbatch(part), None) for part in parts)
        holder[0], metrics = functions.update(holder[0], functools.reduce(functions.add, totals))
        return float(metrics["loss"])

    def peak() -> int:
        stats: Any = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else _resident()

    gradient: Any = functions.gradient
    lowered = gradient.lower(holder[0].params, microbatch(np.ones((rows, length))), None)
    attention = next((kernel for kernel in ("cudnn", "splash") if kernel in lowered.as_text()), "xla")
    device = jax.local_devices()[0].device_kind
    return Side(step, peak, device, attention, lambda: lowered.compile().as_text())


def _policy(remat: str) -> Any:
    """Return the name of a policy of `scan.REMAT`, after adding `attention`, which saves attention's output too."""
    import jax

    from jaxtempl.models import scan

    def keep(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
        dots: Any = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return "dot_product_attention_fwd" in primitive.name or dots(primitive, *arguments, **parameters)

    policies: dict[Any, Any] = scan.REMAT
    policies["attention"] = keep
    return remat


def torch(step_config: StepConfig, length: int) -> Side:
    """Return the side of transformers with torch: sdpa attention, gradients clipped at 1."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from jaxtempl.huggingface import config

    gpu = torch.cuda.is_available()
    gpt_neox = GPTNeoXConfig(**config.hugging_face_config(architecture(step_config.size), "lm"), use_cache=False)
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(gpt_neox, attn_implementation="sdpa").float().train()
    if step_config.remat == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=DECAY, fused=True if gpu else None
    )
    compiled: Any = torch.compile(model) if gpu else model

    def step(tokens: np.ndarray) -> float:
        batches = torch.tensor(tokens, dtype=torch.long).to(model.device).split(step_config.rows)
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


SIDES: dict[str, Callable[[StepConfig, int], Side]] = {"jaxtempl": jaxtempl, "torch": torch}
