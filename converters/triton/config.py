"""config.pbtxt: how Triton serves a bundle, for answers within 100 ms at up to 20 requests a second on one A10.

Each field is one of Triton's model_config.proto; the comments beside them go into the file, for who tunes it there.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from jaxtempl.bundle import bundle

LABELS = "labels.txt"
QUEUE_DELAY_MICROSECONDS = 1000
MAX_QUEUE_SIZE = 64  # requests

TEMPLATE = """\
# How Triton serves this model. bin/convert triton wrote it with the first version and leaves it alone since: it is
# yours to tune. docs/production.md has the arithmetic.
name: "{name}"
platform: "{platform}"
max_batch_size: {max_batch_size}

# The newest version. To go back to another: version_policy {{ specific {{ versions: [ 1 ] }} }}; then load the model.
version_policy {{ latest {{ num_versions: 1 }} }}

# A window's ids, padded on the right (with any id) to {buckets}: only requests of one shape are computed together.
input [
  {{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }},
  {{ name: "lengths" data_type: TYPE_INT32 dims: [ 1 ] }}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {slots} ] label_filename: "{labels}" }}
]

dynamic_batching {{
  # Whoever is not alone goes at once, with all who are there.
  preferred_batch_size: [ {preferred} ]
  # A hundredth of the 100 ms: for requests sent at once. At 20 a second another comes within it once in fifty times.
  max_queue_delay_microseconds: {delay}
  default_queue_policy {{
    # Who has waited this long is answered too late: refused, so that those behind are not late too.
    timeout_action: REJECT
    default_timeout_microseconds: {timeout}
    # A client may give less.
    allow_timeout_override: true
    # In 100 ms two requests come at 20 a second. Thirty times that is no burst but another load: refused at once.
    max_queue_size: {waiting}
  }}
}}

{device}
# One request a length, with its real length: ready means that every shape has run. Ids are zeros, which every
# vocabulary has; random ones need not be in it.
model_warmup [
{warmup}
]
"""

ENGINE = """\
# One instance, as two would share the GPU and slow each other down. It has all profiles of the engine, one a length,
# and takes the nearest for each batch.
instance_group [
  {{ count: 1 kind: KIND_GPU profile: [ {profiles} ] }}
]
"""

ONNX_GPU = """\
# One instance, as two would share the GPU and slow each other down.
instance_group [
  { count: 1 kind: KIND_GPU }
]
# ONNX Runtime's CUDA provider. Without TensorFloat-32: what is float32 in the graph was verified as float32.
optimization {
  execution_accelerators {
    gpu_execution_accelerator: [ { name: "cuda" parameters { key: "use_tf32" value: "0" } } ]
  }
}
"""

ONNX_CPU = """\
# One instance with all cores (0), as the time of one request is what counts.
instance_group [
  { count: 1 kind: KIND_CPU }
]
parameters { key: "intra_op_thread_count" value: { string_value: "0" } }
"""

WARMUP = """\
  {{
    name: "{length} tokens"
    batch_size: 1
    inputs {{ key: "input_ids" value {{ data_type: TYPE_INT32 dims: [ {length} ] zero_data: true }} }}
    inputs {{ key: "lengths" value {{ data_type: TYPE_INT32 dims: [ 1 ] input_data_file: "{file}" }} }}
  }}"""


@dataclasses.dataclass(frozen=True)
class ServingOptions:
    """What the user decides about one model.

    Attributes:
        name: of the model, and of its folder.
        device: where an ONNX model runs.
        max_batch_size: most requests that are computed at once.
        timeout_ms: longest wait in the queue.
    """

    name: str
    device: Literal["gpu", "cpu"]
    max_batch_size: int
    timeout_ms: int


def render(manifest: Mapping[str, Any], serving: ServingOptions) -> str:
    """The text of config.pbtxt for bundles with that manifest."""
    buckets = manifest["buckets"]
    return TEMPLATE.format(
        name=serving.name,
        platform="tensorrt_plan" if manifest["model"] == bundle.PLAN else "onnxruntime_onnx",
        max_batch_size=serving.max_batch_size,
        buckets=_joined(buckets),
        slots=manifest["slots"],
        labels=LABELS,
        preferred=_joined(range(2, serving.max_batch_size + 1)),
        delay=QUEUE_DELAY_MICROSECONDS,
        timeout=serving.timeout_ms * 1000,
        waiting=MAX_QUEUE_SIZE,
        device=_device(manifest, serving),
        warmup=",\n".join(WARMUP.format(length=length, file=warmup_file(length)) for length in buckets),
    )


def warmup_file(length: int) -> str:
    """Name of the file in `warmup/` that holds the `lengths` of a request of that length."""
    return f"lengths-{length}"


def _device(manifest: Mapping[str, Any], serving: ServingOptions) -> str:
    if manifest["model"] == bundle.PLAN:
        return ENGINE.format(profiles=_joined(f'"{index}"' for index in range(len(manifest["buckets"]))))
    return ONNX_GPU if serving.device == "gpu" else ONNX_CPU


def _joined(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
