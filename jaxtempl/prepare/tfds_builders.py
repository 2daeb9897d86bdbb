"""The TFDS builders of a dataset: cases, labels and packed rows as ArrayRecord files, without TensorFlow.

Their files are `cases/1.0.0/`, `labels/1.0.0/` and `rows/<tokenizer sha>/1.0.0/`. Read them with
`tfds.builder_from_directory(...).as_data_source(split)`.
"""

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import registered
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from jaxtempl.errors import first_line
from jaxtempl.files import FULL

EXAMPLE, FEATURE = (
    cast(Any, tf_example_pb2),
    cast(Any, tf_feature_pb2),
)  # created at run time, so unknown to type checkers
SHARD = 512 << 20  # bytes after which a split continues in another file
FIRST = "1.0.0"

SplitExamples = Iterator[tuple[str, Mapping[str, bytes | np.ndarray]]]  # split and example, in reading order


def _array(shape: tuple[int | None, ...], dtype: type[np.generic]) -> tfds.features.Tensor:
    """Return an array feature stored as raw bytes, several times faster than TFDS's default list of integers."""
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)


def serialize(example: Mapping[str, bytes | np.ndarray]) -> bytes:
    """Return a tf.train.Example with the same bytes as from TFDS's serializer, in a fifth of its time.

    All features are bytes: text, or arrays in the dtype of their feature.
    """
    raw = {name: value if isinstance(value, bytes) else value.tobytes() for name, value in example.items()}
    lists = {name: FEATURE.Feature(bytes_list=FEATURE.BytesList(value=[value])) for name, value in raw.items()}
    proto = EXAMPLE.Example(features=FEATURE.Features(feature=lists))
    return proto.SerializeToString(deterministic=True)  # equal content, equal bytes


def _call(write: Callable[..., object], *arguments: object) -> None:
    """Call a method of an ArrayRecordWriter; raise OSError for its RuntimeError, as for a full disk."""
    try:
        write(*arguments)
    except RuntimeError as error:
        number = next((number for number in FULL if os.strerror(number) in str(error)), errno.EIO)
        raise OSError(number, first_line(error)) from None


class _Split:
    """The shards of one split being written; they are renamed at the end, as their names state their number."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._lengths: list[int] = []
        self._bytes = self._in_shard = 0
        self._writer: Any = None

    def write(self, example: bytes) -> None:
        if self._writer is None:
            path = self._folder / f"{self._name}-{len(self._lengths)}.partial"
            self._writer = ArrayRecordWriter(str(path), "group_size:1,snappy")
            self._lengths.append(0)
            self._in_shard = 0
        _call(self._writer.write, example)
        self._lengths[-1] += 1
        self._bytes += len(example)
        self._in_shard += len(example)
        if self._in_shard > SHARD:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            _call(self._writer.close)
        self._writer = None

    def close(self, template: Any) -> tfds.core.SplitInfo:
        self._close_shard()
        for i in range(len(self._lengths)):
            path = template.sharded_filepath(shard_index=i, num_shards=len(self._lengths))
            (self._folder / f"{self._name}-{i}.partial").rename(path)
        return tfds.core.SplitInfo(
            name=self._name, shard_lengths=self._lengths, num_bytes=self._bytes, filename_template=template
        )


with registered.skip_registration():

    class _Builder(tfds.core.GeneratorBasedBuilder):
        """A builder that writes one stream of examples into all splits.

        TFDS's generator builder keeps up to 1 GB in memory, sorts on disk, and needs a generator for each split. One
        stream keeps memory flat and reads the transcripts once.
        """

        VERSION = tfds.core.Version(FIRST)
        RELEASE_NOTES: ClassVar[dict[str, str]] = {FIRST: "First version."}

        def __init__(self, folder: Path, examples: SplitExamples, config: str | None = None) -> None:
            self._examples = examples
            builder_config = tfds.core.BuilderConfig(name=config) if config else None
            super().__init__(data_dir=str(folder), config=builder_config, file_format="array_record")

        def _split_generators(self, dl_manager: object) -> dict[str, Any]:
            raise NotImplementedError("the examples are one stream; see _generate_splits")

        def _generate_examples(self, **kwargs: object) -> Any:
            return self._examples

        def _generate_splits(self, dl_manager: object, download_config: object) -> list[tfds.core.SplitInfo]:
            folder, splits = Path(self.data_dir), dict[str, _Split]()
            for name, example in self._generate_examples():
                if name not in splits:
                    splits[name] = _Split(folder, name)
                splits[name].write(serialize(example))
            return [splits[name].close(self._get_filename_template(split_name=name)) for name in sorted(splits)]

        def _features(self) -> dict[str, Any]:
            raise NotImplementedError

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict(self._features())
            return tfds.core.DatasetInfo(
                builder=self, description=self.__doc__, features=features, disable_shuffling=True
            )

    class CaseBuilder(_Builder):
        """Cases as text: `messages` is JSON, `[[role, text, template or null], ...]`."""

        name = "cases"

        def _features(self) -> dict[str, Any]:
            return {"case_id": tfds.features.Text(), "messages": tfds.features.Text()}

    class LabelBuilder(_Builder):
        """Labelled messages, many in a record so that millions load at once: case index, message index, slot or -1."""

        name = "labels"

        def _features(self) -> dict[str, Any]:
            return {name: _array((None,), np.int32) for name in ("case", "message", "slot")}

    class RowBuilder(_Builder):
        """Packed language-model rows of one tokenizer; segment 0 is padding."""

        name = "rows"

        def __init__(self, folder: Path, examples: SplitExamples, tokenizer: str, length: int) -> None:
            self._length = length
            super().__init__(folder, examples, tokenizer)

        def _features(self) -> dict[str, Any]:
            return {name: _array((self._length,), np.uint16) for name in ("tokens", "segments")}


def build(make: Callable[[], _Builder], folder: Path) -> None:
    """Make a builder and write its examples, without TFDS's messages and progress bars.

    Args:
        make: returns the builder.
        folder: a temporary folder, which TFDS requires for downloads.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            make().download_and_prepare(download_dir=str(folder))
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
