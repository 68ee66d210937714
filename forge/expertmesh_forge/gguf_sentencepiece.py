"""A SentencePiece vocabulary with scores -> a tokenizer that cuts text as SentencePiece's BPE does.

Pieces carry scores instead of a list of merges: of two neighbours that make a piece, those with the best score are
merged first. What no piece spells is written as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

__all__ = ["sentencepiece_tokenizer"]

_NORMAL, _UNKNOWN, _USER_DEFINED = 1, 2, 4
_SPACE = "▁"


def sentencepiece_tokenizer(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], *, prefix: bool
) -> Tokenizer:
    """Build it from parallel lists; `prefix` says that every text begins with a space that decoding drops."""
    vocab = {token: index for index, token in enumerate(tokens)}
    pieces = {token: scores[index] for token, index in vocab.items() if kinds[index] in (_NORMAL, _USER_DEFINED)}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """Best score first; of equal ones the longer left half, as tokenizers that are published with models have it."""
    pairs = (pair for piece in pieces for pair in _halves(piece, pieces))
    return sorted(pairs, key=lambda pair: (-pieces["".join(pair)], -len(pair[0]), -len(pair[1])))


def _halves(piece: str, pieces: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(piece)):
        if piece[:cut] in pieces and piece[cut:] in pieces:
            yield piece[:cut], piece[cut:]
