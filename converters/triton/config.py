"""config.pbtxt: Triton's configuration of a bundle, for answers within 100 ms at up to 20 requests/s on one A10.

Each field is one of Triton's model_config.proto. The comments go into the file, for the people who tune it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from jaxtempl.bundle import bundle

LABELS = "labels.txt"
QUEUE_DELAY_MICROSECONDS = 1000
MAX_QUEUE_SIZE = 64  # requests

TEMPLATE = """\
# Triton's configuration of this model. bin/convert triton writes it with the first version and never changes it again:
# it is yours to tune. docs/production.md has the arithmetic.
name: "{name}"
platform: "{platform}"
max_batch_size: {max_batch_size}

# The newest version. To roll back: version_policy {{ specific {{ versions: [ 1 ] }} }}; then load the model.
version_policy {{ latest {{ num_versions: 1 }} }}

# A window's ids, padded on the right (with any id) to {buckets}: only requests of one shape share a batch.
input [
  {{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }},
  {{ name: "lengths" data_type: TYPE_INT32 dims: [ 1 ] }}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {slots} ] label_filename: "{labels}" }}
]

dynamic_batching {{
  # Two or more waiting requests are computed immediately, together.
  preferred_batch_size: [ {preferred} ]
  # A hundredth of the 100 ms, for simultaneous requests. At 20 requests/s, one in fifty is followed by another in it.
  max_queue_delay_microseconds: {delay}
  default_queue_policy {{
    # An answer to a request that waited this long is too late: it is rejected, so that later ones are in time.
    timeout_action: REJECT
    default_timeout_microseconds: {timeout}
    # A client may set a shorter timeout.
    allow_timeout_override: true
    # At 20 requests/s two arrive in 100 ms. Thirty times as many are overload, not a burst: rejected immediately.
    max_queue_size: {max_queue_size}
  }}
}}

{device}
# One request per length, with its real length: ready means that every shape has run. Ids are zeros, because every
# vocabulary has the id 0.
model_warmup [
{warmup}
]
"""

ENGINE = """\
# One instance: two would share the GPU and slow each other down. It has all profiles of the engine, one per length,
# and uses the nearest for each batch.
instance_group [
  {{ count: 1 kind: KIND_GPU profile: [ {profiles} ] }}
]
"""

ONNX_GPU = """\
# One instance: two would share the GPU and slow each other down.
instance_group [
  { count: 1 kind: KIND_GPU }
]
# ONNX Runtime's CUDA provider, without TensorFloat-32: the float32 parts of the graph were verified as float32.
optimization {
  execution_accelerators {
    gpu_execution_accelerator: [ { name: "cuda" parameters { key: "use_tf32" value: "0" } } ]
  }
}
"""

ONNX_CPU = """\
# One instance with all cores (0), because the latency of a single request counts.
instance_group [
  { count: 1 kind: KIND_CPU }
]
parameters { key: "intra_op_thread_count" value: { string_value: "0" } }
"""

# Triton's backend passes no other session option to ONNX Runtime, and ignores unknown parameters.
INT8 = """\
# int8 needs a processor with VNNI or AMX. Elsewhere its products saturate: ONNX Runtime's session.x64quantprecision,
# which prevents that, cannot be set here (github.com/triton-inference-server/onnxruntime_backend/issues/107).
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
    """The user's options for one model.

    Attributes:
        name: Name of the model and of its folder.
        device: Device of an ONNX model.
        max_batch_size: Maximum number of requests in a batch.
        timeout_ms: Maximum wait in the queue, in milliseconds.
    """

    name: str
    device: Literal["gpu", "cpu"]
    max_batch_size: int
    timeout_ms: int


def render(manifest: Mapping[str, Any], options: ServingOptions) -> str:
    """Render config.pbtxt for bundles with that manifest."""
    buckets = manifest["buckets"]
    return TEMPLATE.format(
        name=options.name,
        platform="tensorrt_plan" if manifest["model"] == bundle.PLAN else "onnxruntime_onnx",
        max_batch_size=options.max_batch_size,
        buckets=_joined(buckets),
        slots=manifest["slots"],
        labels=LABELS,
        preferred=_joined(range(2, options.max_batch_size + 1)),
        delay=QUEUE_DELAY_MICROSECONDS,
        timeout=options.timeout_ms * 1000,
        max_queue_size=MAX_QUEUE_SIZE,
        device=_device(manifest, options),
        warmup=",\n".join(WARMUP.format(length=length, file=warmup_file(length)) for length in buckets),
    )


def warmup_file(length: int) -> str:
    """Return the name of the file in `warmup/` with the `lengths` of a request of that length."""
    return f"lengths-{length}"


def _device(manifest: Mapping[str, Any], options: ServingOptions) -> str:
    if manifest["model"] == bundle.PLAN:
        return ENGINE.format(profiles=_joined(f'"{index}"' for index in range(len(manifest["buckets"]))))
    cpu = INT8 + ONNX_CPU if manifest["dtype"] == "int8" else ONNX_CPU
    return ONNX_GPU if options.device == "gpu" else cpu


def _joined(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
