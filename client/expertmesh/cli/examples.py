"""Examples at the end of every command's --help; a test runs each through the parser of its command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import typer

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "up": (
        "expertmesh up --model build/demo-bundle",
        "expertmesh up --model my-bundle --workers 2 --host 127.0.0.1",
    ),
    "controller": ("expertmesh controller --model my-bundle --listen 0.0.0.0:7070 --token SECRET",),
    "gateway": ("expertmesh gateway --join 192.168.1.10:7070 --token SECRET --listen 0.0.0.0:7071",),
    "worker": (
        "expertmesh worker --join 192.168.1.10:7070 --token SECRET",
        "expertmesh worker --join 192.168.1.10:7070 --token SECRET --budget 2GB --id kitchen",
    ),
    "demo": ("expertmesh demo --question 'Name three rivers.'",),
    "generate": (
        'expertmesh generate "Name three rivers."',
        "git diff | expertmesh generate --max-tokens 400 --stats",
        'expertmesh generate --raw --json "The capital of France is"',
    ),
    "chat": (
        "expertmesh chat",
        'expertmesh chat --system "Answer in one sentence."',
        "expertmesh chat --json",
    ),
    "models list": ("expertmesh models list", "expertmesh models list --json"),
    "models serve": ("expertmesh models serve my-bundle --name small --budget-share 0.5",),
    "models unserve": ("expertmesh models unserve small", "expertmesh models unserve small --drain-s 60"),
    "jobs list": ("expertmesh jobs list", "expertmesh jobs list --json"),
    "jobs watch": ("expertmesh jobs watch 3f9a1c22b7",),
    "jobs show": ("expertmesh jobs show 3f9a1c22b7 --json",),
    "jobs cancel": ("expertmesh jobs cancel 3f9a1c22b7",),
    "job-worker": ("expertmesh job-worker --redis redis://192.168.1.10:6379/0",),
    "status": ("expertmesh status", "expertmesh status --json --server 192.168.1.10:7070 --token SECRET"),
    "nodes": ("expertmesh nodes", "expertmesh nodes --json"),
    "experts": (
        "expertmesh experts",
        "expertmesh experts --by worker",
        "expertmesh experts --by rows --model SmolLM2-135M-Instruct",
    ),
    "route explain": (
        'expertmesh route explain "The capital of France is"',
        'expertmesh route explain --layer 3 --at 2 "The capital of France is"',
        "expertmesh route explain --layer 3 --rows rows.npy",
    ),
    "tokens create": (
        "expertmesh tokens create shop --scope infer --ttl 90d",
        "expertmesh tokens create kitchen --scope join --json",
    ),
    "tokens list": ("expertmesh tokens list", "expertmesh tokens list --json"),
    "tokens revoke": ("expertmesh tokens revoke 3f9a1c22b7",),
    "tokens audit": ("expertmesh tokens audit", "expertmesh tokens audit --limit 1000 --json"),
    "tokens new": ("expertmesh tokens new",),
    "certs init": (
        "expertmesh certs init mesh-tls --host 192.168.1.10",
        "expertmesh certs init kitchen-tls --authority mesh-tls.authority",
    ),
    "certs show": ("expertmesh certs show mesh-tls", "expertmesh certs show mesh-tls --server 192.168.1.10:7070"),
    "certs renew": ("expertmesh certs renew mesh-tls", "expertmesh certs renew mesh-tls --host edge.example"),
    "doctor": ("expertmesh doctor", "expertmesh doctor --server 192.168.1.10:7070 --token SECRET --json"),
    "version": ("expertmesh version", "expertmesh version --json"),
    "model convert": ("expertmesh model convert llama.gguf --out my-bundle --share 0.87",),
    "model import": (
        "expertmesh model import my-checkpoint --out my-bundle",
        "expertmesh model import my-checkpoint --on-mesh --name mine",
    ),
    "model inspect": ("expertmesh model inspect my-bundle", "expertmesh model inspect my-bundle --json"),
    "model verify": ("expertmesh model verify my-bundle", "expertmesh model verify my-bundle --json"),
    "model curve": ("expertmesh model curve llama.gguf --shares 0.9,0.75",),
    "model precisions": ("expertmesh model precisions llama.gguf --held-out 4",),
}


def add_examples(app: typer.Typer) -> None:
    """Give every command of the table its examples."""
    for command in app.registered_commands:
        _add(command, command.name or "")
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands if group.typer_instance else ():
            _add(command, f"{group.name} {command.name}")


def _add(command: typer.models.CommandInfo, path: str) -> None:
    lines = EXAMPLES.get(path, ())
    if lines:
        # \b keeps the lines as they are.
        command.epilog = "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
