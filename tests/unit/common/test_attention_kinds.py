"""Trunks of every attention kind, in chunks, decode batches and mixed steps, against a plain numpy oracle."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from expertmesh_controller.gateway.trunk.executor import Chunk, Work
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from models import attention_kinds as kinds
from models.attention_kinds import KINDS, Kind
from models.attention_oracle import ROUTED_SHARE, trunk_logits
from models.tiny_bundle import dequantise, quantise

SLOTS, CHUNK = 3, 12
IDS = [int(i) for i in np.random.default_rng(8).integers(0, kinds.VOCABULARY, 40)]
OTHERS = [int(i) for i in np.random.default_rng(9).integers(0, kinds.VOCABULARY, 20)]
NOBODY = np.empty(0, np.int64), np.empty(0, np.int32)


@cache
def segments_of(name: str) -> list[kinds.Tensors]:
    return kinds.random_segments(KINDS[name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture(scope="module")
def trunks(folder):
    """Trunks by (kind, precision), opened once."""

    @cache
    def bundle(name: str):
        return kinds.write_bundle(folder / name.replace(" ", "-"), KINDS[name], segments_of(name))

    @cache
    def trunk(name: str, precision: str = "fp32") -> LocalTrunk:
        return LocalTrunk(bundle(name), precision, slots=SLOTS, context_tokens=64, chunk_tokens=CHUNK)

    return trunk


@pytest.fixture(params=KINDS)
def name(request) -> str:
    return request.param


def step(trunk: LocalTrunk, work: Work) -> np.ndarray:
    first = ROUTED_SHARE * trunk.begin(work)
    return trunk.finish(ROUTED_SHARE * trunk.advance(1, first)).copy()


def prefill(trunk: LocalTrunk, slot: int, ids: list[int]) -> np.ndarray:
    """Logits of every token, in chunks of the trunk's size."""
    logits = []
    for start in range(0, len(ids), CHUNK):
        part = np.asarray(ids[start : start + CHUNK])
        step(trunk, Work(*NOBODY, Chunk(slot, start, part, ends_prompt=False)))
        counts = [(first, min(SLOTS, len(part) - first)) for first in range(0, len(part), SLOTS)]
        logits.extend(trunk.chunk_logits(first, count).copy() for first, count in counts)
    return np.concatenate(logits)


def expected(name: str, ids: list[int], kind: Kind | None = None, segments=None) -> np.ndarray:
    return trunk_logits(segments or segments_of(name), (kind or KINDS[name]).shapes, kinds.ROPE, ids)


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, in parts of the largest value."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))


def test_a_prompt_in_chunks_gives_the_logits_of_the_oracle(trunks, name: str) -> None:
    assert distance(prefill(trunks(name), 1, IDS), expected(name, IDS)) <= 1e-5


def test_decode_batches_and_mixed_steps_give_the_logits_of_the_oracle(trunks, name: str) -> None:
    trunk, sequences = trunks(name), [OTHERS[:3], OTHERS]
    for slot, ids in enumerate(sequences):
        prefill(trunk, slot, ids)
    for start in (0, CHUNK):
        tokens = [start + 5, start + 6]
        work = Work(np.asarray(tokens), np.asarray([len(ids) for ids in sequences], np.int32))
        chunk = Chunk(2, start, np.asarray(IDS[start : start + CHUNK]), ends_prompt=True)
        logits = step(trunk, replace(work, chunk=chunk))
        sequences = [[*ids, token] for ids, token in zip(sequences, tokens, strict=True)]
        for row, ids in zip(logits, [*sequences, IDS[: start + CHUNK]], strict=True):
            assert distance(row, expected(name, ids)[-1]) <= 1e-5


def test_every_tensor_counts(trunks, name: str) -> None:
    got, random = prefill(trunks(name), 0, IDS), np.random.default_rng(2)
    for index, tensors in enumerate(segments_of(name)):
        for tensor, value in tensors.items():
            noisy = [dict(t) for t in segments_of(name)]
            noisy[index][tensor] = value + 0.1 * random.standard_normal(value.shape)
            assert distance(got, expected(name, IDS, segments=noisy)) > 1e-3, f"{tensor} of segment {index}"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("window", {"window": 0}),
        ("window", {"window": 6}),
        ("window", {"window": 4}),
        ("no positions", {"rotary": True}),
        ("score scale", {"scale": None}),
        ("latent", {"scale": None}),
    ],
)
def test_every_word_of_a_shape_counts(trunks, name: str, changes) -> None:
    kind = KINDS[name]
    layer = "second" if "rotary" in changes else "first"
    other = replace(kind, **{layer: replace(getattr(kind, layer), **changes)})
    assert distance(prefill(trunks(name), 0, IDS), expected(name, IDS, other)) > 1e-3


def test_int4_stays_within_its_rounding(trunks, name: str) -> None:
    rounded = [dict(tensors) for tensors in segments_of(name)]
    for tensors in rounded:
        tensors |= {matrix: dequantise(*quantise(tensors[matrix])) for matrix in kinds.matrices(tensors)}
    got, want = prefill(trunks(name, "int4"), 0, IDS), expected(name, IDS, segments=rounded)
    assert np.abs(got - want).mean() < 0.05 * want.std()
