"""`expertmesh up` and OpenAI's client against it, on real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import openai
import pytest

from e2e.running import RunningUp, running_up
from expertmesh import Client
from expertmesh.local_access import local_token

GREEDY = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
CHAT = [{"role": "user", "content": "the rain"}]


def variables(up: RunningUp) -> dict[str, str]:
    """What the printed line sets, as the shell of a person would."""
    (line,) = re.findall(r"OpenAI clients: (.*)", up.said)
    script = f"export {line}; env"
    environment = {"PATH": os.environ["PATH"]}
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment).stdout
    return dict(entry.split("=", 1) for entry in shown.splitlines() if "=" in entry)


@pytest.mark.slow
def test_openais_client_is_answered_by_a_mesh_as_the_line_that_up_prints_says(tiny_folder, folder):
    with running_up(folder, ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--store", "memory"]) as up:
        said = variables(up)
        with openai.OpenAI(base_url=said["OPENAI_BASE_URL"], api_key=said["OPENAI_API_KEY"], max_retries=0) as client:
            answer = client.completions.create(prompt=[5, 6, 7], max_tokens=8, **GREEDY)
            with Client(up.address) as sdk:
                same = sdk.complete(prompt_ids=[5, 6, 7], max_tokens=8, ignore_eos=True)
            assert answer.choices[0].text == same.text
            # Several hundred tokens: the engine runs ahead of the reader, and the kill must meet the answer.
            with client.chat.completions.create(messages=CHAT, max_tokens=400, stream=True, **GREEDY) as stream:
                text, killed = "", False
                for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                    if not killed:
                        os.kill(up.pids["worker-2"], signal.SIGKILL)
                        killed = True
            whole = client.chat.completions.create(messages=CHAT, max_tokens=400, **GREEDY)
            assert text == whole.choices[0].message.content
        assert up.stop() == 0


@pytest.mark.slow
def test_a_secure_mesh_shows_its_certificate_to_openais_client_and_wants_a_token(tiny_folder, folder, monkeypatch):
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--store", "memory", "--secure"]
    with running_up(folder, arguments) as up:
        said = variables(up)
        assert said["OPENAI_BASE_URL"].startswith("https://127.0.0.1:")
        assert said["OPENAI_API_KEY"] not in up.said
        monkeypatch.setenv("EXPERTMESH_HOME", str(folder / "home"))
        assert said["OPENAI_API_KEY"] == local_token(up.address)
        monkeypatch.setenv("SSL_CERT_FILE", said["SSL_CERT_FILE"])
        with openai.OpenAI(base_url=said["OPENAI_BASE_URL"], api_key=said["OPENAI_API_KEY"], max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="wrong").models.list()
        assert up.stop() == 0


@pytest.mark.slow
def test_the_door_can_be_left_out(tiny_folder, folder):
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--store", "memory", "--http-port", "off"]
    with running_up(folder, arguments) as up:
        assert "OpenAI clients" not in up.said
        assert up.stop() == 0


@pytest.mark.slow
def test_every_gateway_has_a_door_and_the_other_ones_answer_when_the_controllers_is_gone(tiny_folder, folder):
    arguments = ["--model", str(tiny_folder), "--listen", "127.0.0.1:0", "--store", "memory", "--gateways", "2"]
    with running_up(folder, arguments) as up:
        urls = [variables(up)["OPENAI_BASE_URL"], *re.findall(r"or OPENAI_BASE_URL=(\S+)", up.said)]
        assert urls == list(up.openai_base_urls)
        assert len(set(urls)) == 2
        texts = []
        for url in urls:
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                texts.append(client.completions.create(prompt=[5, 6, 7], max_tokens=8, **GREEDY).choices[0].text)
        assert texts[0] == texts[1]
        os.kill(up.pids["controller"], signal.SIGKILL)
        with openai.OpenAI(base_url=urls[1], api_key="none", max_retries=0) as client:
            again = client.completions.create(prompt=[5, 6, 7], max_tokens=8, **GREEDY)
        assert again.choices[0].text == texts[1]
