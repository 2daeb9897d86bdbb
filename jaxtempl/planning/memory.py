"""What a device holds while it trains, by kind: the state from its shardings, activations by formula or by compiler.

A training's peak is in the gradient of a microbatch, where beside parameters and moments there are the microbatch's
own gradient and, with more than one piece to an update, the sum of those before it (`train.compiled` donates that sum
when it adds, so there is no third). All of these are float32 and lie as `partition` says.

The formula, in bytes, for a device's T tokens of a microbatch in 16 bit, with f devices on `fsdp` and t on `tensor`.
Dims: N layers, D hidden, H heads, F feed-forward, V vocabulary, W = 4 D^2 + 2 D F of a layer's matrices. By `--remat`
a layer keeps for the backward pass:

    full  2 T D                                      its input
    dots  2 T (D + (3 D' + F) / t)                   its input and what its matrix products give
    none  T (28 D + 32 + (8 F + 10 D' + 4 H) / t)    all that the derivatives read

The last is six float32 [T D] of the two LayerNorms and their two outputs, four [T F] of the GELU, and of flash
attention q, k, v, its output in two layouts, and the sums of its softmax. XLA's attention keeps more: `_attention`.
D' is D, but 128 H where a TPU pads narrower heads. All the while there are 12 T D of embedding and last LayerNorm;
with f > 1, 4 D V / t of the head's gradient before it is cut; with f = 1 and `none`, 2 N W / t of weights in 16 bit.
Beside what is kept there are, one after the other, so that the larger counts:

    loss   8 for each logit of a chunk (`losses.ELSEWHERE`), 2 D V / t for the head in 16 bit and 4 D V / t for what
           a chunk adds to its gradient;
           with f > 1, 4 D V / t for the head brought together
    layer  what `none` keeps of one layer, if that is not kept; T (8 D + 4 F / t) of cotangents;
           6 W / t for the layer's weights in 16 bit and their gradient in 32
"""

import importlib.util
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtempl import files
from jaxtempl.config import paths, sizes
from jaxtempl.errors import UserError
from jaxtempl.models import attention, cross_entropy
from jaxtempl.models.scan import REMAT, Remat
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.planning import compiled_step
from jaxtempl.specs import architecture, flops
from jaxtempl.specs.accelerators import Accelerator
from jaxtempl.specs.architecture import NeoXArchitecture

BENCHMARK = paths.ROOT / "docs" / "benchmarks" / "train_gpu.json"  # of bench/train_gpu.py


class MicrobatchShape(NamedTuple):
    """What is computed at a time.

    Attributes:
        shape: the mesh.
        rows: of the microbatch, on all devices.
        length: tokens of a row.
        remat: what the backward pass computes again.
        several: whether an update has more than one microbatch.
        flash: whether attention never holds its scores.
        dtype: of the computation, of 16 bit.
        documents: whether those of a row do not see each other.
    """

    shape: MeshShape
    rows: int
    length: int
    remat: Remat
    several: bool
    flash: bool
    dtype: Any = jnp.bfloat16
    documents: bool = False

    @property
    def tokens(self) -> int:
        """Of one device."""
        return self.rows // self.shape.row_shards * self.length


class DeviceMemory(NamedTuple):
    """Bytes of one device by kind, and where those of the activations come from."""

    parameters: float
    gradients: float
    moments: float
    activations: float
    source: str

    @property
    def total(self) -> float:
        """All of them."""
        return self.parameters + self.gradients + self.moments + self.activations


def formula_memory(a: NeoXArchitecture, piece: MicrobatchShape, lanes: int = 1) -> DeviceMemory:
    """What a device of this many lanes (128 on a TPU) holds, by the formula above alone."""
    tree = compiled_step.state_bytes(a, piece.shape) / 4
    return DeviceMemory(tree, tree * (1 + piece.several), 2 * tree, activation_bytes(a, piece, lanes), "formula")


def estimate_memory(a: NeoXArchitecture, piece: MicrobatchShape, device: Accelerator) -> DeviceMemory:
    """The same, corrected where a peak was measured on such a GPU."""
    held = formula_memory(a, piece, device.lanes)
    return held if device.slices else _corrected(a, piece, device, held)


def _corrected(a: NeoXArchitecture, piece: MicrobatchShape, device: Accelerator, held: DeviceMemory) -> DeviceMemory:
    row = find_measured(a, device, piece.remat)
    if row is None:
        return held._replace(source="formula, not corrected: no measured peak for this device, size and --remat")
    several, flash = row["update_rows"] > row["rows"], row["attention"] != "xla"
    known = MicrobatchShape(MeshShape(1, 1, 1), row["rows"], row["length"], piece.remat, several, flash)
    counted = formula_memory(a, known, device.lanes)
    factor = 1 + (row["peak_bytes"] - counted.total) / counted.activations
    source = f"formula times {factor:.2f}, as measured at {row['rows']} rows of {row['length']:,} on {row['device']}"
    return held._replace(activations=held.activations * factor, source=source)


def find_measured(a: NeoXArchitecture, device: Accelerator, remat: Remat | None = None) -> Any:
    """The fastest row of the GPU benchmark of a model on such a device, with this `--remat` if one is named, or None.

    Of what a training can be told: torch's rows, and those with other flags of XLA's, are no such.
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


def compiler_memory(a: NeoXArchitecture, piece: MicrobatchShape, device: Accelerator) -> DeviceMemory:
    """The same with what the TPU's own compiler finds, where it is installed."""
    held = estimate_memory(a, piece, device)
    slice_ = device.slices.get(piece.shape.devices)
    if slice_ is None or importlib.util.find_spec("libtpu") is None:
        missing = f"no slice of {piece.shape.devices} chips is known" if slice_ is None else "libtpu is not installed"
        return held._replace(source=f"formula, for {missing}")
    try:
        return held._replace(activations=float(compiled_activations(a, piece, slice_)), source="the TPU's own compiler")
    except jax.errors.JaxRuntimeError as error:
        return held._replace(activations=_refused(error), source="the TPU's own compiler, which refuses this much")


def _refused(error: Exception) -> float:
    """Bytes that a compiler found to be too much."""
    found = re.search(r"temporaries \(([\d.]+)G\)", str(error))
    if not found:
        said = " ".join(str(error).split())
        raise UserError(f"the TPU's compiler failed ({said}); without libtpu --plan uses its formula") from None
    return float(found.group(1)) * 2**30


def compiled_activations(a: NeoXArchitecture, piece: MicrobatchShape, slice_: str) -> int:
    """Temporary bytes of the gradient as libtpu compiles it for a slice, which takes minutes and needs no TPU."""
    print(f"compiling for {slice_}, which takes minutes", file=sys.stderr, flush=True)
    mesh = make_mesh(piece.shape, compiled_step.describe_slice(slice_))
    return compiled_step.compile_gradient(
        a, mesh, piece.rows, piece.length, piece.remat, piece.dtype, piece.documents
    ).temporary


def activation_bytes(a: NeoXArchitecture, piece: MicrobatchShape, lanes: int = 1) -> float:
    """Bytes of a device beside its state, by the formula above."""
    _, fsdp, tensor = piece.shape
    kept = a.layers * layer_activation_bytes(a, piece, piece.remat, lanes) + 12 * piece.tokens * a.hidden
    head = a.hidden * a.vocabulary / tensor
    matrices = (4 * a.hidden**2 + 2 * a.hidden * a.feed_forward) / tensor
    kept += 4 * head if fsdp > 1 else 2 * a.layers * matrices * (piece.remat == "none")
    chunks = cross_entropy.chunk_count(
        piece.length, piece.rows // piece.shape.row_shards * a.vocabulary // tensor, "gpu"
    )  # or "tpu"
    loss = 8 * piece.tokens / chunks * a.vocabulary / tensor + (10 if fsdp > 1 else 6) * head
    again = 0.0 if piece.remat == "none" else layer_activation_bytes(a, piece, "none", lanes)
    layer = again + piece.tokens * (8 * a.hidden + 4 * a.feed_forward / tensor) + 6 * matrices
    return kept + max(loss, layer)


def layer_activation_bytes(a: NeoXArchitecture, piece: MicrobatchShape, remat: Remat, lanes: int = 1) -> float:
    """Bytes that a layer keeps on a device for its backward pass, by the formula above."""
    tokens, tensor = piece.tokens, piece.shape.tensor
    heads = a.heads * max(a.head_dim, lanes)
    if remat == "full":
        return 2.0 * tokens * a.hidden
    if remat == "dots":
        return 2 * tokens * (a.hidden + (3 * heads + a.feed_forward) / tensor)
    attended = 10 * heads + 4 * a.heads if piece.flash else _attention(a, piece.length)
    return tokens * (28 * a.hidden + 32 + (8 * a.feed_forward + attended) / tensor)


def _attention(a: NeoXArchitecture, length: int) -> float:
    """Bytes a token that XLA's attention keeps on all devices of `tensor`.

    Of each chunk of queries the scores in 32 and 16 bit and its keys and values; of each query itself, what is found
    for it in 32 and 16 bit, and two sums of its softmax.
    """
    ends = [min(start + attention.QUERY_CHUNK, length) for start in range(0, length, attention.QUERY_CHUNK)]
    scores = sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))
    return 8 * a.hidden + 8 * a.heads + (4 * a.hidden * sum(ends) + 6 * a.heads * scores) / length
