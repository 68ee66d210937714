"""Chat: lines mean what they mean, a pipe gets answers only, and a person can stop an answer and go on."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from expertmesh.cli import failures
from expertmesh.cli.conversation import Ask, Become, Conversation, Quit, Save, Say, Turn, action_of, from_json, to_json
from expertmesh.cli.main import run
from expertmesh.errors import InvalidRequest
from unit.client.scripted_mesh import WORDS, breaks_after, finished, token, whole

ANSWER = "".join(WORDS)
TALK = Conversation("be brief", (Turn("user", "hi"), Turn("assistant", "hello")))


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("how are you?\n", Ask("how are you?")),
        ("//etc is a folder", Ask("/etc is a folder")),
        ("/quit", Quit()),
        ("/exit", Quit()),
        ("/save a b.json", Save("a b.json")),
        ("\n", Say("")),
    ],
)
def test_a_line_is_a_question_or_a_command(line, action):
    assert action_of(line, TALK) == action


def test_reset_forgets_what_was_said_and_keeps_the_system_text():
    action = action_of("/reset", TALK)
    assert isinstance(action, Become)
    assert action.conversation == Conversation("be brief")


def test_system_replaces_the_system_text_and_keeps_what_was_said():
    action = action_of("/system be rude", TALK)
    assert isinstance(action, Become)
    assert action.conversation == Conversation("be rude", TALK.turns)


@pytest.mark.parametrize("line", ["/help", "/save", "/sytem x"])
def test_what_cannot_be_done_is_answered_with_what_can(line):
    action = action_of(line, TALK)
    assert isinstance(action, Say)
    assert "/" in action.text


def test_a_saved_conversation_is_read_again():
    assert from_json(to_json(TALK), "x") == TALK


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"messages": [{"role": "robot", "content": "x"}]}', '{"messages": [{"role": "user"}]}']
)
def test_what_is_no_saved_conversation_is_refused_with_its_name(text):
    with pytest.raises(InvalidRequest, match=r"talk\.json"):
        from_json(text, "talk.json")


@pytest.fixture
def piped(serve, monkeypatch):
    """Run `chat` over lines of a pipe; returns (exit code, mesh)."""

    def start(lines, *script, arguments=()):
        mesh = serve(*script)
        monkeypatch.setenv("EXPERTMESH_SERVER", mesh.address)
        monkeypatch.setattr(sys, "stdin", _Pipe(lines))
        return run(["chat", *arguments]), mesh

    return start


class _Pipe:
    def __init__(self, lines):
        self._lines = iter(lines)

    def __iter__(self):
        return self._lines

    def isatty(self):
        return False


def test_every_line_of_a_pipe_gets_one_answer_that_knows_what_was_said(piped, capsys):
    code, mesh = piped(["one\n", "\n", "two\n"], whole)
    assert (code, capsys.readouterr()) == (0, (f"{ANSWER}\n{ANSWER}\n", ""))
    said = [[(m.role, m.content) for m in request.chat.messages] for request in mesh.requests]
    assert said == [[("user", "one")], [("user", "one"), ("assistant", ANSWER), ("user", "two")]]


def test_the_system_text_comes_first_and_reset_forgets_the_rest(piped, capsys):
    _, mesh = piped(["one\n", "/reset\n", "/system new\n", "two\n"], whole, arguments=["--system", "old"])
    said = [[m.content for m in request.chat.messages] for request in mesh.requests]
    assert said == [["old", "one"], ["new", "two"]]
    assert "(forgotten)" in capsys.readouterr().err


def test_json_is_one_object_per_answer(piped, capsys):
    code, _ = piped(["one\n", "two\n"], whole, arguments=["--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (code, [line["text"] for line in lines]) == (0, [ANSWER, ANSWER])
    assert set(lines[0]) == {
        "text", "finish_reason", "prompt_tokens", "completion_tokens", "ttft_ms", "total_ms"
    }  # fmt: skip


def test_a_conversation_is_saved_and_goes_on_in_another_chat(piped, tmp_path, capsys):
    piped(["one\n", f"/save {tmp_path}/talk.json\n"], whole)
    _, mesh = piped(["two\n"], whole, arguments=["--load", f"{tmp_path}/talk.json"])
    assert [m.content for m in mesh.requests[-1].chat.messages] == ["one", ANSWER, "two"]


def test_a_failed_answer_ends_a_pipe_with_its_code(piped, capsys):
    import grpc

    code, _ = piped(["one\n", "two\n"], breaks_after(0, grpc.StatusCode.PERMISSION_DENIED))
    assert code == failures.REFUSED
    assert capsys.readouterr().err == "expertmesh: scripted failure\n"


async def endless(request, context):
    """Answers with its first words, and then stands still until the caller leaves."""
    yield token(0)
    yield token(1)
    await asyncio.Event().wait()


class Terminal:
    """The program at a real terminal."""

    def __init__(self, arguments, environment):
        self.master, slave = pty.openpty()
        # A session of its own, whose terminal this is: Ctrl-C then comes from the terminal, as a person's does.
        take = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        script = f"{take}from expertmesh.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, **environment, "TERM": "xterm"}, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def until(self, text):
        assert self.shows(text, 20), self.seen

    def shows(self, text, wait_s):
        waiting, end = select.poll(), time.monotonic() + wait_s  # select() takes no descriptor above 1023
        waiting.register(self.master, select.POLLIN)
        while text not in self.seen:
            if not waiting.poll(max(0.0, 1000 * (end - time.monotonic()))):
                return False
            self.seen += os.read(self.master, 4096).decode(errors="replace")
        _, _, self.seen = self.seen.partition(text)
        return True

    def interrupt_until(self, text):
        """Press Ctrl-C as a person does: again if nothing happens.

        `input` of CPython misses a signal that comes between its prompt and its wait for the first key.
        """
        for _ in range(4):
            self.type("\x03")
            if self.shows(text, 5):
                return
        raise AssertionError(self.seen)

    def type(self, text):
        os.write(self.master, text.encode())

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(serve):
    opened = []

    def start(*script):
        mesh = serve(*script)
        opened.append(Terminal(["chat"], {"EXPERTMESH_SERVER": mesh.address}))
        return opened[-1], mesh

    yield start
    for one in opened:
        one.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal):
    screen, mesh = terminal(endless, whole)
    screen.until("> ")
    screen.type("one\n")
    screen.until("The capital")
    screen.type("\x03")
    screen.until("(stopped)")
    screen.until("> ")
    screen.type("two\n")
    screen.until(ANSWER)
    screen.until("> ")
    assert [m.content for m in mesh.requests[-1].chat.messages] == ["one", "The capital", "two"]
    screen.type("\x04")
    assert screen.process.wait(10) == 0


def test_ctrl_c_at_the_prompt_drops_the_line_and_quit_ends(terminal):
    screen, mesh = terminal(whole)
    screen.until("> ")
    screen.type("never sent")
    screen.until("never sent")
    screen.interrupt_until("> ")
    screen.type("/quit\n")
    assert screen.process.wait(10) == 0
    assert mesh.requests == []


def test_a_failed_answer_is_told_to_a_person_who_may_go_on(terminal):
    import grpc

    screen, mesh = terminal(breaks_after(0, grpc.StatusCode.PERMISSION_DENIED), whole)
    screen.until("> ")
    screen.type("one\n")
    screen.until("expertmesh: scripted failure")
    screen.until("> ")
    screen.type("two\n")
    screen.until(ANSWER)
    assert [m.content for m in mesh.requests[-1].chat.messages] == ["two"]
    screen.process.send_signal(signal.SIGTERM)


def test_an_answer_held_back_until_its_end_is_whole(piped, capsys):
    async def tail(request, context):
        yield finished("held back")

    assert piped(["one\n"], tail)[0] == 0
    assert capsys.readouterr().out == "held back\n"
