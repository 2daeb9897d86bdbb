"""Training batches: their order, mixture, microbatches and label subsets."""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from jaxtempl.config import mixture
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.data import loader
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContext, LabelledContexts
from jaxtempl.data.sampling import nested_subset
from jaxtempl.errors import UsageError, UserError
from jaxtempl.models import factory
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window
from jaxtempl.training import finetune, objectives

LENGTHS = (64, 128, 256, 512)


def rows(count: int, first: int = 0) -> list[dict[str, np.ndarray]]:
    return [{"tokens": np.full(8, first + i, np.uint16), "segments": np.ones(8, np.uint16)} for i in range(count)]


def seen(stream: Any, steps: range) -> list[int]:
    return [int(row[0]) for step in steps for microbatch in stream[step] for row in microbatch["tokens"]]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> LabelledContexts:
    dataset = tiny.dataset(tmp_path_factory.mktemp("batches") / "made")
    return LabelledContexts.read(dataset, "train", Window(Tokenizer(tokenizer_path("nano")), 32))


def test_each_epoch_contains_each_row_once_in_a_new_order() -> None:
    stream = loader.row_batches([(rows(12), None)], 4, 2, seed=1)
    first, second = seen(stream, range(3)), seen(stream, range(3, 6))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_batch_depends_only_on_the_step_and_the_seed() -> None:
    def stream(seed: int) -> Any:
        return loader.row_batches([(rows(12), None)], 4, 1, seed)

    assert seen(stream(1), range(5, 6)) == seen(stream(1), range(5, 6)) == seen(stream(1), range(6))[20:]
    assert seen(stream(1), range(3)) != seen(stream(2), range(3))


def test_prefetching_changes_no_batch() -> None:
    stream = loader.row_batches([(rows(12), None)], 4, 1, seed=1)
    ahead = [batch[0]["tokens"] for batch in loader.batches_from(stream, 3, 9)]
    np.testing.assert_array_equal(ahead, [stream[step][0]["tokens"] for step in range(3, 9)])


def test_a_mixture_draws_by_weight_or_by_size_without_weights() -> None:
    sources = [(rows(30), 3.0), (rows(100, first=1000), 1.0)]
    drawn = seen(loader.row_batches(sources, 4, 1, seed=0), range(25))
    assert sum(token < 1000 for token in drawn) == 75
    equal = seen(loader.row_batches([(r, None) for r, _ in sources], 13, 1, seed=0), range(10))
    assert len(set(equal)) >= 128  # each source's share is rounded, so its last row may come one draw late


def test_microbatches_contain_the_rows_of_their_batch() -> None:
    whole, cut = (loader.row_batches([(rows(12), None)], 6, n, seed=3) for n in (1, 3))
    assert [len(m["tokens"]) for m in cut[0]] == [2, 2, 2]
    assert seen(whole, range(2)) == seen(cut, range(2))
    with pytest.raises(UserError, match="does not divide"):
        loader.row_batches([(rows(12), None)], 6, 4, seed=3)


def test_a_dataset_without_rows_is_rejected() -> None:
    with pytest.raises(UserError, match="no packed training rows"):
        loader.row_batches([(rows(3), None), ([], None)], 1, 1, seed=0)


@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=40),
    st.sampled_from([512, 1024, 4096]),
    st.sampled_from([8, 64]),
)
def test_microbatches_contain_each_context_once_in_fixed_shapes(lengths: list[int], budget: int, most: int) -> None:
    made = [LabelledContext([i % 500 + 2] * n, i) for i, n in enumerate(lengths)]
    batch = loader.microbatches(made, LENGTHS, budget, most)
    allowed = {(min(max(budget // length, 1), most), length) for length in LENGTHS}
    assert {m["tokens"].shape for m in batch} <= allowed
    real = [
        (int(s), int(n)) for m in batch for s, n, w in zip(m["slots"], m["lengths"], m["weights"], strict=True) if w
    ]
    assert sorted(real) == sorted(enumerate(lengths))
    for m in batch:
        for row, length in zip(m["tokens"], m["lengths"], strict=True):
            assert (row[:length] > 0).all()
            assert (row[length:] == 0).all()
    alone = sum(
        -(-sum(1 for _ in group) // rows) * rows * length for length, rows, group in grouped(lengths, budget, most)
    )
    assert sum(m["tokens"].size for m in batch) <= alone


def grouped(lengths: list[int], budget: int, most: int) -> list[tuple[int, int, Any]]:
    """Group the contexts by the smallest bucket that fits them."""
    bucket = sorted(next(b for b in LENGTHS if b >= n) for n in lengths)
    return [(b, min(max(budget // b, 1), most), list(group)) for b, group in itertools.groupby(bucket)]


def test_length_buckets_do_not_change_the_gradient(contexts: LabelledContexts) -> None:
    """The same contexts, bucketed by length and padded to the window in one microbatch, give one gradient."""
    task = objectives.template_classification(factory.make_graphdef(tiny.ARCHITECTURE, 4))
    params = jax.tree.map(lambda leaf: leaf * 4, factory.random_params(tiny.ARCHITECTURE, 4, 0))
    drawn = [contexts[i] for i in range(11)]
    cut = loader.microbatches(drawn, (8, 16, 32), 64, 16)
    assert len({m["tokens"].shape for m in cut}) > 1
    gradient = jax.jit(jax.grad(lambda p, m: task.loss(p, m)[0]))
    parts = [gradient(params, dict(m)) for m in cut]
    (whole,) = loader.microbatches(drawn, (32,), 32 * 11, 11)
    expected = gradient(params, dict(whole))
    added = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), added, expected)


def test_padding_does_not_change_the_loss(contexts: LabelledContexts) -> None:
    params = jax.tree.map(lambda leaf: leaf * 4, factory.random_params(tiny.ARCHITECTURE, 4, 0))
    loss = objectives.template_classification(factory.make_graphdef(tiny.ARCHITECTURE, 4)).loss
    short, long = (loader.microbatches([contexts[0]], (n,), n, 1)[0] for n in (32, 64))
    optimized = jax.jit(loss, compiler_options={"xla_backend_optimization_level": 3})  # as users' programs are
    a, b = (optimized(params, dict(m))[0] for m in (short, long))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_smaller_label_subsets_are_subsets_of_larger_ones(contexts: LabelledContexts) -> None:
    subsets = [set(nested_subset(100, n, seed=5).tolist()) for n in (5, 20, 100)]
    assert [len(subset) for subset in subsets] == [5, 20, 100]
    assert subsets[0] < subsets[1] < subsets[2]
    assert set(nested_subset(100, None, seed=5).tolist()) == subsets[2]
    with pytest.raises(UserError, match=f"--labels=1000 is more than the {len(contexts)}"):
        finetune.choose_labels(contexts, 1000, seed=5)


def test_a_context_ends_before_its_label(contexts: LabelledContexts) -> None:
    case = contexts.cases[int(contexts.case[0])]
    before = case.messages[: contexts.message[0]]
    text = " ".join(message.text for message in before)
    assert contexts[0].tokens == Tokenizer(tokenizer_path("nano")).encode([text])[0][-32:]


def test_labelled_batches_are_a_function_of_the_step(contexts: LabelledContexts) -> None:
    stream = loader.labelled_batches(contexts, 8, 2, seed=0)
    again = loader.labelled_batches(contexts, 8, 2, seed=0)
    for a, b in zip(stream[4], again[4], strict=True):
        jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))
    slots = [s for step in range(6) for m in stream[step] for s, w in zip(m["slots"], m["weights"], strict=True) if w]
    assert len(slots) == 48


@pytest.mark.parametrize(
    ("epochs", "rows", "batch", "steps"), [(1.0, 125_000, 128, 977), (2.0, 64, 32, 4), (0.5, 3, 8, 1)]
)
def test_epochs_convert_to_steps(epochs: float, rows: int, batch: int, steps: int) -> None:
    assert loader.steps_for_epochs(epochs, rows, batch) == steps


def test_a_mixture_is_parsed_from_its_flag() -> None:
    assert mixture.parse_mixture("a,b/c") == [(Path("a"), None), (Path("b/c"), None)]
    assert mixture.parse_mixture("a:0.4,b:2") == [(Path("a"), 0.4), (Path("b"), 2.0)]
    for wrong in ("a:0,b:1", "a:x", "a:1,b", "", "a:-1"):
        with pytest.raises(UsageError):
            mixture.parse_mixture(wrong)


def test_the_error_for_a_missing_dataset_names_prepare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bin/prepare --transcripts"):
        Dataset(tmp_path / "none")
