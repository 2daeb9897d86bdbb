"""Masking hides the right tokens in the right proportions, as a function of step and pass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtempl.config import sizes
from jaxtempl.data import loader, mlm
from jaxtempl.data.mlm import Masker
from jaxtempl.errors import UserError
from jaxtempl.text.tokenizer import Tokenizer

BERT = Tokenizer(sizes.tokenizer_path("bert-tiny"))
CLS, SEP, MASK = 101, 102, 103
MASKER = Masker(BERT)


def row(length: int, padded: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1000, BERT.vocabulary, length).astype(np.uint16)
    tokens[generator.random(length) < 0.1] = SEP
    segments = np.ones(length, np.uint16)
    if padded:
        tokens[-padded:], segments[-padded:] = 0, 0
    return {"tokens": tokens, "segments": segments}


@settings(max_examples=100)
@given(st.integers(2, 200), st.data(), st.integers(0, 2**32 - 1))
def test_only_ordinary_tokens_are_predicted_and_all_others_stay(length: int, data: st.DataObject, seed: int) -> None:
    given_row = row(length, data.draw(st.integers(0, length - 1)), seed)
    made = MASKER(given_row, np.random.default_rng(seed))
    behind = np.concatenate([[CLS], given_row["tokens"][:-1]])
    told = made["positions"][made["weights"] > 0]
    assert len(set(told.tolist())) == len(told)
    assert not np.isin(behind[told], [0, CLS, SEP]).any()
    assert (made["segments"][told] > 0).all()
    np.testing.assert_array_equal(made["targets"][made["weights"] > 0], behind[told])
    others = np.setdiff1d(np.arange(length), told)
    np.testing.assert_array_equal(made["tokens"][others], behind[others])
    ordinary = int(((made["segments"] > 0) & ~np.isin(behind, [0, CLS, SEP])).sum())
    assert len(told) == min(max(round(0.15 * ordinary), 1), ordinary, mlm.masked_count(length))


def test_80_percent_of_targets_are_masked_and_10_percent_are_replaced() -> None:
    kinds = np.zeros(3)
    for seed in range(200):
        made = MASKER(row(512, 0, seed), np.random.default_rng(seed))
        real = made["weights"] > 0
        read = made["tokens"][made["positions"][real]]
        masked, same = read == MASK, read == made["targets"][real]
        kinds += [masked.sum(), (~masked & ~same).sum(), same.sum()]
        assert not np.isin(read, [0, CLS, SEP]).any()
    spread = 4 * np.sqrt(0.25 * kinds.sum())
    np.testing.assert_allclose(kinds, np.array([0.8, 0.1, 0.1]) * kinds.sum(), atol=spread)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(UserError, match=r"no \[MASK\]"):
        Masker(Tokenizer(sizes.tokenizer_path("nano")))


def test_masks_depend_only_on_the_step_and_differ_in_each_pass() -> None:
    rows = [row(32, 0, seed) for seed in range(4)]
    made = loader.row_batches([(rows, None)], 2, 1, 7, transform=MASKER)
    again = loader.row_batches([(rows, None)], 2, 1, 7, transform=MASKER)
    for step in (0, 1, 5):
        np.testing.assert_array_equal(made[step][0]["tokens"], again[step][0]["tokens"])
    later = next(loader.batches_from(again, 5, 6))[0]
    np.testing.assert_array_equal(made[5][0]["tokens"], later["tokens"])
    first = {tuple(places) for step in (0, 1) for places in made[step][0]["positions"].tolist()}
    second = {tuple(places) for step in (2, 3) for places in made[step][0]["positions"].tolist()}
    assert first.isdisjoint(second)
