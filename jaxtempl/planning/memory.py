"""Memory of a device during training: the state from its shardings, activations by formula or by the TPU's compiler.

The peak is in the gradient of a microbatch. The device then holds parameters, moments, the microbatch's gradient, and,
with several microbatches to an update, the sum of the earlier ones (`training.step` donates that sum when it adds, so
there is no third gradient). All of them are float32 and sharded as `parallel.rules` states.

The formula gives the bytes of activations for a device's T tokens of a microbatch in 16 bit, with f devices on `fsdp`
and t on `tensor`. Dims: N layers, D hidden, H heads, F feed-forward, V vocabulary; W = 4 D^2 + 2 D F is the size of a
layer's matrices. By `--remat`, a layer saves for the backward pass:

    full  2 T D                                      its input
    dots  2 T (D + (3 D' + F) / t)                   its input and the outputs of its matrix products;
                                                     a BERT also 4 T D, of those before its LayerNorms
    none  T (28 D + 32 + (8 F + 10 D' + 4 H) / t)    every operand of the derivatives

`none` is six float32 [T D] of the two LayerNorms and their two outputs, four [T F] of the GELU, and for attention
q, k, v, its output in two layouts, and the sums of its softmax. D' is D, or 128 H if a TPU pads narrower heads. Full
attention, such as a BERT's, has 12 D + 8 H + 6 H L instead of 10 D' + 4 H: it saves its weights in 32 and 16 bit. The
last layer of a classifier that reads one position saves keys and values alone, 4 T D. In addition there are 12 T D of
embedding and final LayerNorm; with f > 1, 4 D V / t of the head's gradient before it is reduce-scattered; with f = 1
and `none`, 2 N W / t of weights in 16 bit.
Of these two, which follow each other, the larger counts:

    loss   nothing for a classifier; else, over the predicted positions, 8 for each logit of a chunk
           (`cross_entropy.DEFAULT_CHUNK_LOGITS`), 2 D V / t for the head in 16 bit and 4 D V / t for a chunk's
           contribution to its gradient; with f > 1, 4 D V / t for the gathered head
    layer  what `none` saves for one layer, if that is not saved; T (8 D + 4 F / t) of cotangents; 6 W / t for the
           layer's weights in 16 bit and their gradient in 32; for attention without a flash kernel, 12 T H C / t for
           the scores, weights and gradients of a chunk of C queries (`attention.QUERY_CHUNK`), and 8 T H L / t for
           the gradients of weights and scores if attention is full
"""

import importlib.util
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtempl import files
from jaxtempl.config import paths, sizes
from jaxtempl.data import mlm
from jaxtempl.errors import UserError
from jaxtempl.models import attention, cross_entropy
from jaxtempl.models.scan import REMAT, Remat
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.planning import compiled_step
from jaxtempl.specs import architecture, flops
from jaxtempl.specs.accelerators import Accelerator
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture

BENCHMARK = paths.ROOT / "docs" / "benchmarks" / "train_gpu.json"  # written by bench/train_gpu.py


class MicrobatchShape(NamedTuple):
    """Everything about a microbatch that its memory depends on.

    Attributes:
        mesh: Shape of the mesh.
        rows: Rows of the microbatch, on all devices.
        length: Tokens of a row.
        remat: What the backward pass recomputes.
        accumulates: Whether an update has more than one microbatch.
        flash: Whether the attention kernel never stores its scores.
        dtype: Type of the computation, of 16 bit.
        mask_documents: Whether the documents of a row do not attend to each other.
        slots: Columns of a template head; None for a language model.
    """

    mesh: MeshShape
    rows: int
    length: int
    remat: Remat
    accumulates: bool
    flash: bool
    dtype: Any = jnp.bfloat16
    mask_documents: bool = False
    slots: int | None = None

    @property
    def local_rows(self) -> int:
        """Rows of one device."""
        return self.rows // self.mesh.row_shards

    @property
    def tokens(self) -> int:
        """Tokens of one device."""
        return self.local_rows * self.length


class DeviceMemory(NamedTuple):
    """Bytes of one device by kind, and the source of the figure for activations."""

    parameters: float
    gradients: float
    moments: float
    activations: float
    source: str

    @property
    def total(self) -> float:
        """Total bytes."""
        return self.parameters + self.gradients + self.moments + self.activations


def formula_memory(a: Architecture, microbatch: MicrobatchShape, lanes: int = 1) -> DeviceMemory:
    """Return the memory of a device by the formula above; `lanes` is 128 on a TPU."""
    tree = compiled_step.state_bytes(a, microbatch.mesh, microbatch.slots) / 4
    gradients = tree * (1 + microbatch.accumulates)
    return DeviceMemory(tree, gradients, 2 * tree, activation_bytes(a, microbatch, lanes), "formula")


def estimate_memory(a: Architecture, microbatch: MicrobatchShape, device: Accelerator) -> DeviceMemory:
    """Return the memory of a device by the formula, corrected if the benchmark has a peak of such a GPU."""
    memory = formula_memory(a, microbatch, device.lanes)
    return memory if device.slices else _corrected(a, microbatch, device, memory)


def _corrected(a: Architecture, microbatch: MicrobatchShape, device: Accelerator, memory: DeviceMemory) -> DeviceMemory:
    row = find_measured(a, device, microbatch.remat) if microbatch.slots is None else None
    if row is None:
        return memory._replace(source="formula, not corrected: no measured peak for this device, size and --remat")
    accumulates, flash = row["update_rows"] > row["rows"], row["attention"] != "xla"
    measured = MicrobatchShape(MeshShape(1, 1, 1), row["rows"], row["length"], microbatch.remat, accumulates, flash)
    predicted = formula_memory(a, measured, device.lanes)
    factor = 1 + (row["peak_bytes"] - predicted.total) / predicted.activations
    source = f"formula times {factor:.2f}, as measured at {row['rows']} rows of {row['length']:,} on {row['device']}"
    return memory._replace(activations=memory.activations * factor, source=source)


def find_measured(a: Architecture, device: Accelerator, remat: Remat | None = None) -> Any:
    """Return the benchmark's fastest row of a model on such a device, with this `--remat` if one is given, or None.

    Only rows that a training can reproduce count: none of torch, none with other XLA flags.
    """
    rows = files.read_json(BENCHMARK)["rows"] if BENCHMARK.exists() else []
    return next(
        (
            row
            for row in rows
            if (row["side"], row["flags"]) == ("jaxtempl", "")
            and flops.match_device(row["device"]) == device.kind
            and architecture.architecture_from(sizes.read_size(row["size"])["architecture"]) == a
            and row["remat"] in ([remat] if remat else REMAT)
        ),
        None,
    )


def compiler_memory(a: Architecture, microbatch: MicrobatchShape, device: Accelerator) -> DeviceMemory:
    """Return the memory with activations from the TPU's compiler, if it is installed."""
    memory = estimate_memory(a, microbatch, device)
    topology = device.slices.get(microbatch.mesh.devices)
    if topology is None:
        return memory._replace(source=f"formula, because no slice of {microbatch.mesh.devices} chips is known")
    if importlib.util.find_spec("libtpu") is None:
        return memory._replace(source="formula, because libtpu is not installed")
    try:
        activations, source = float(compiled_activations(a, microbatch, topology)), "the TPU's compiler"
    except jax.errors.JaxRuntimeError as error:
        activations, source = _rejected_bytes(error), "the TPU's compiler, which rejects this much"
    return memory._replace(activations=activations, source=source)


def _rejected_bytes(error: Exception) -> float:
    """Return the bytes that the compiler found to be too much. Raises UserError for any other error."""
    match = re.search(r"temporaries \(([\d.]+)G\)", str(error))
    if not match:
        message = " ".join(str(error).split())
        raise UserError(f"the TPU's compiler failed ({message}); uninstall libtpu to plan by the formula") from None
    return float(match.group(1)) * 2**30


def compiled_activations(a: Architecture, microbatch: MicrobatchShape, topology: str) -> int:
    """Return the temporary bytes of the gradient as libtpu compiles it for a slice; takes minutes, needs no TPU."""
    print(f"compiling for {topology}, which takes minutes", file=sys.stderr, flush=True)
    mesh = make_mesh(microbatch.mesh, compiled_step.describe_slice(topology))
    _, rows, length, remat, _, _, dtype, mask_documents, slots = microbatch
    return compiled_step.compile_gradient(a, mesh, rows, length, remat, dtype, mask_documents, slots).temporary


def activation_bytes(a: Architecture, microbatch: MicrobatchShape, lanes: int = 1) -> float:
    """Return the bytes of a device in addition to its state, by the formula above."""
    _, fsdp, tensor = microbatch.mesh
    tokens = microbatch.tokens
    single = microbatch.slots is not None and not (isinstance(a, NeoXArchitecture) and a.pooling == "mean")
    saved = (a.layers - single) * layer_activation_bytes(a, microbatch, microbatch.remat, lanes)
    saved += (12 + 4 * single) * tokens * a.hidden
    head = a.hidden * a.vocabulary / tensor
    matrices = (4 * a.hidden**2 + 2 * a.hidden * a.feed_forward) / tensor
    saved += 4 * head if fsdp > 1 else 2 * a.layers * matrices * (microbatch.remat == "none")
    loss = _loss_bytes(a, microbatch) + (10 if fsdp > 1 else 6) * head if microbatch.slots is None else 0.0
    recomputed = 0.0 if microbatch.remat == "none" else layer_activation_bytes(a, microbatch, "none", lanes)
    attended = 12 * attention.QUERY_CHUNK if is_causal(a) else 8 * microbatch.length
    scores = 0 if microbatch.flash else a.heads * attended
    layer = recomputed + tokens * (8 * a.hidden + (4 * a.feed_forward + scores) / tensor) + 6 * matrices
    return saved + max(loss, layer)


def _loss_bytes(a: Architecture, microbatch: MicrobatchShape) -> float:
    """Return the bytes of the logits of one chunk of predicted positions, with their gradient."""
    length = mlm.masked_count(microbatch.length) if isinstance(a, BertArchitecture) else microbatch.length
    columns = a.vocabulary / microbatch.mesh.tensor
    # "gpu" stands for any accelerator.
    chunks = cross_entropy.chunk_count(length, microbatch.local_rows * a.vocabulary // microbatch.mesh.tensor, "gpu")
    return 8 * microbatch.local_rows * length / chunks * columns


def layer_activation_bytes(a: Architecture, microbatch: MicrobatchShape, remat: Remat, lanes: int = 1) -> float:
    """Return the bytes that a layer saves on a device for its backward pass, by the formula above."""
    tokens, tensor = microbatch.tokens, microbatch.mesh.tensor
    heads = a.heads * max(a.head_dim, lanes)
    if remat == "full":
        return 2.0 * tokens * a.hidden
    if remat == "dots":
        before_norms = 2 * a.hidden if isinstance(a, BertArchitecture) else 0
        return 2 * tokens * (a.hidden + before_norms + (3 * heads + a.feed_forward) / tensor)
    attended = 10 * heads + 4 * a.heads
    if not is_causal(a):
        attended = 12 * a.hidden + 8 * a.heads + 6 * a.heads * microbatch.length
    return tokens * (28 * a.hidden + 32 + (8 * a.feed_forward + attended) / tensor)


def is_causal(a: Architecture) -> bool:
    """Return whether a model's attention is causal."""
    return isinstance(a, NeoXArchitecture) and a.attention == "causal"
