import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from expertmesh_forge.errors import TextsError
from expertmesh_forge.texts.documents import DOMAINS, Document, split_documents
from expertmesh_forge.texts.sources import load_split
from expertmesh_forge.texts.windows import cut_windows
from models.tiny_gguf import TEMPLATE


@pytest.fixture
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _documents(count, length=3000):
    return [Document.of(DOMAINS[i % 3], f"d{i}", f"{i} " * (length // 2)) for i in range(count)]


def test_no_document_is_both_calibration_and_held_out():
    split = load_split()
    calibration, held_out = ({d.sha256 for d in part} for part in (split.calibration, split.held_out))
    assert not calibration & held_out
    for part in (split.calibration, split.held_out):
        assert {document.domain for document in part} == set(DOMAINS)


def test_a_document_stays_on_its_side_whatever_its_name_and_its_company():
    texts = _documents(60)
    alone = {d.sha256: d.held_out for d in texts}
    split = split_documents([Document.of(d.domain, "renamed", d.text) for d in reversed(texts[:30])])
    assert all(not alone[d.sha256] for d in split.calibration)
    assert all(alone[d.sha256] for d in split.held_out)


def test_copies_of_a_text_count_once():
    split = split_documents(_documents(12) + _documents(12))
    assert len(split.calibration) + len(split.held_out) == 12


def test_windows_are_equal_long_deterministic_and_from_distinct_documents(tokenizer):
    texts = _documents(30)
    first = cut_windows(texts, tokenizer, per_domain=5, window_tokens=64)
    again = cut_windows(texts, tokenizer, per_domain=5, window_tokens=64)
    assert first.tokens.shape == (15, 64)
    assert len(set(first.names)) == 15
    assert first.sha256 == again.sha256
    assert [len(first.rows_of(domain)) for domain in DOMAINS] == [5, 5, 5]


def test_pieces_of_one_document_do_not_overlap(tokenizer):
    text = "".join(chr(0x4E00 + i) for i in range(3000))
    texts = [Document.of(domain, domain, f"{domain}{text}") for domain in DOMAINS]
    windows = cut_windows(texts, tokenizer, per_domain=3, window_tokens=60, per_document=3)
    for domain in DOMAINS:
        pieces = [tokenizer.decode(windows.tokens[row].tolist()) for row in windows.rows_of(domain)]
        assert len(set(pieces)) == len(pieces) == 3


def test_every_fourth_window_is_a_chat_turn(tokenizer):
    windows = cut_windows(_documents(30), tokenizer, per_domain=8, window_tokens=64, chat_template=TEMPLATE)
    starts = ["".join(tokenizer.id_to_token(i) for i in row[:12]) for row in windows.tokens.tolist()]
    assert [start == "<|im_start|>" for start in starts] == [True, False, False, False] * 6


def test_windows_longer_than_any_document_are_refused(tokenizer):
    with pytest.raises(TextsError, match="no prose document has 9000 tokens"):
        cut_windows(_documents(6), tokenizer, per_domain=1, window_tokens=9000)


def test_windows_hold_token_ids(tokenizer):
    assert cut_windows(_documents(6), tokenizer, per_domain=1, window_tokens=8).tokens.dtype == np.int64


def test_a_chat_template_of_a_checkpoint_runs_nothing_but_text():
    from expertmesh_forge.errors import SourceError
    from expertmesh_forge.texts.windows import _as_chat

    said = _as_chat(
        "word " * 100, "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}"
    )
    assert said == "assistant"
    with pytest.raises(SourceError, match="chat template cannot be used"):
        _as_chat("word " * 100, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
