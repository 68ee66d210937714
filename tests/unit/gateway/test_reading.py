"""Readers that take nothing for long are noticed; slow ones that go on are not."""

from __future__ import annotations

from expertmesh_controller.gateway.batching.jobs import Ended, Facts, Reason, Ticket
from expertmesh_controller.gateway.batching.reading import Readers


def opened(readers: Readers, key: int = 0, client: str = "anna", events: int = 3) -> Ticket:
    ticket = Ticket(key, Facts(0.0), client=client)
    for _ in range(events):
        ticket.events.put_nowait(Ended(Reason.LENGTH))
    readers.opened(ticket)
    return ticket


def test_a_reader_that_takes_nothing_is_stalled_after_its_patience() -> None:
    readers = Readers(patience_s=10.0)
    ticket = opened(readers)
    assert [readers.stalled(now) for now in (100.0, 105.0, 109.9)] == [[], [], []]
    assert readers.stalled(110.0) == [ticket]


def test_one_event_now_and_then_is_enough() -> None:
    readers = Readers(patience_s=10.0)
    ticket = opened(readers)
    readers.stalled(0.0)
    ticket.events.get_nowait()
    assert readers.stalled(9.0) == readers.stalled(18.0) == []
    assert readers.stalled(19.0) == [ticket]


def test_waiting_for_an_answer_that_does_not_come_is_no_standing_still() -> None:
    readers = Readers(patience_s=10.0)
    ticket = opened(readers, events=0)
    assert [readers.stalled(float(now)) for now in range(0, 100, 5)] == [[]] * 20
    ticket.events.put_nowait(Ended(Reason.LENGTH))
    assert readers.stalled(104.9) == []
    assert readers.stalled(105.0) == [ticket]


def test_a_reader_that_is_stuck_with_the_last_event_is_given_up_too() -> None:
    readers = Readers(patience_s=10.0)
    ticket = opened(readers, events=0)
    ticket.facts.ended = True
    assert readers.stalled(0.0) == []
    assert readers.stalled(10.0) == [ticket]


def test_the_crowd_is_counted_by_client_and_state() -> None:
    readers = Readers(10.0)
    running, waiting, unread = (opened(readers, key, client) for key, client in enumerate(["anna", "bert", "cleo"]))
    running.facts.started = unread.facts.started = 1.0
    unread.facts.ended = True
    crowd = readers.crowd(outstanding=2)
    assert (crowd.outstanding, crowd.started) == (2, 1)
    assert (crowd.unstarted, crowd.unread) == ({"bert": 1}, {"cleo": 1})
    for ticket in (running, waiting, unread):
        readers.closed(ticket)
        assert ticket not in readers
    assert not readers.crowd(0).unread
