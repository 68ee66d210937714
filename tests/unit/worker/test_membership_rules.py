"""Pure rules of membership: backoff, leaders' terms."""

from __future__ import annotations

import pytest

from expertmesh_api.v1 import common_pb2
from expertmesh_common.errors import Precondition
from expertmesh_worker.agent.joining import FIRST_DELAY_S, LONGEST_DELAY_S, delay_s
from expertmesh_worker.agent.orders import Terms


def test_delays_double_up_to_a_limit():
    delays = [delay_s(failures, chance=lambda: 0.5) for failures in range(1, 9)]

    assert delays[:3] == pytest.approx([FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S])
    assert delays[-1] == delay_s(10_000, chance=lambda: 0.5) == LONGEST_DELAY_S


def test_delays_are_spread_around_their_middle():
    assert delay_s(3, chance=lambda: 0.0) == pytest.approx(2 * FIRST_DELAY_S)
    assert delay_s(3, chance=lambda: 1.0) == pytest.approx(6 * FIRST_DELAY_S)


def test_terms_only_grow():
    terms = Terms()
    for term in (2, 2, 5):
        terms.see(common_pb2.Epoch(term=term))

    with pytest.raises(Precondition, match="leader of term 4, term 5 was seen"):
        terms.see(common_pb2.Epoch(term=4, n=99))

    assert terms.newest == 5


def test_terms_of_another_store_begin_anew_and_those_of_the_same_do_not():
    terms = Terms()
    terms.count_for("a")
    terms.see(common_pb2.Epoch(term=5))
    for same in ("a", ""):
        terms.count_for(same)
        with pytest.raises(Precondition, match="term 5 was seen"):
            terms.see(common_pb2.Epoch(term=1))

    terms.count_for("b")
    terms.see(common_pb2.Epoch(term=1))

    assert terms.newest == 1
