"""The numpy oracle that most tests compare with: reading a text in pieces changes nothing of what it says."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from models.tiny_bundle import PRECISIONS, Dense, dense_logits, greedy_ids, make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_text_that_is_read_in_pieces_has_the_logits_of_the_whole_text(bundle: Bundle, precision: str) -> None:
    ids = np.random.default_rng(0).integers(0, 256, 40).tolist()
    dense = Dense(bundle, precision)
    pieces = [dense.read_in(ids[start:end]) for start, end in ((0, 1), (1, 20), (20, 21), (21, 40))]
    np.testing.assert_allclose(np.concatenate(pieces), dense_logits(bundle, ids, precision), rtol=1e-4, atol=1e-4)


def test_greedy_tokens_are_those_of_a_whole_pass_for_each(bundle: Bundle) -> None:
    ids = [72, 101, 108]
    for _ in range(30):
        ids.append(int(dense_logits(bundle, ids)[-1].argmax()))
    assert greedy_ids(bundle, [72, 101, 108], 30) == ids[3:]
