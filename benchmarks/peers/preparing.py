"""The model in every engine's own format under build/peers/, made when it is missing or its script is newer."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ARMS", "HERE", "PEERS_PYTHON", "ArmPlan", "NotPrepared", "arm_options", "prepare"]

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"
FOLDER = BUILD / "peers"
PEERS_PYTHON = BUILD / "peers-venv" / "bin" / "python"
INSTALLED = BUILD / "peers-venv" / ".installed"
CHECKPOINT = FOLDER / "model-c"
CHECKED, CHECKED_OURS = FOLDER / "checked.json", FOLDER / "checked-ours.json"
IMPORT = (str(Path(sys.executable).with_name("expertmesh")), "model", "import")


class NotPrepared(Exception):
    """A step failed; the message is its last line."""


@dataclass(frozen=True)
class ArmPlan:
    """`weights` names their format in `model_c.BITS`; `arguments` are the script's beside the model."""

    name: str
    script: str
    python: Path
    model: Path
    weights: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """`product` is there when `command` is through; it is made anew when one of `sources` is younger."""

    product: Path
    command: Sequence[str]
    sources: Sequence[Path]

    def run(self) -> None:
        if self.product.exists() and self.product.stat().st_mtime > max(
            s.stat().st_mtime for s in self.sources if s.exists()
        ):
            return
        print(f"preparing {self.product.relative_to(BUILD)}", flush=True)
        self.product.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(self.command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise NotPrepared(said[-1] if said else f"{self.command[1]} ended with {done.returncode}")


def arm_options(parser: argparse.ArgumentParser, plans: Sequence[ArmPlan]) -> argparse.Namespace:
    """The command line with what every comparison takes; `arms` are names of `plans`, none for all."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=(), help="only these; all by default")
    parser.add_argument("--write-page", action="store_true", help="put the tables into docs/peers.md")
    options = parser.parse_args()
    names = [plan.name for plan in plans]
    wrong = [name for name in options.arms if name not in names]
    if wrong:
        parser.error(f"no engine {', '.join(wrong)}; there are {', '.join(names)}")
    return options


ARMS = (
    ArmPlan("expertmesh", "arm_ours.py", Path(sys.executable), FOLDER / "bundle", "int4"),
    ArmPlan("transformers", "arm_transformers.py", PEERS_PYTHON, CHECKPOINT, "fp32"),
    ArmPlan("onnxruntime-genai", "arm_genai.py", PEERS_PYTHON, FOLDER / "genai-int4", "int4"),
    ArmPlan("llama.cpp Q4_0", "arm_llama.py", PEERS_PYTHON, FOLDER / "gguf" / "Q4_0.gguf", "Q4_0"),
    ArmPlan("llama.cpp Q8_0", "arm_llama.py", PEERS_PYTHON, FOLDER / "gguf" / "Q8_0.gguf", "Q8_0"),
)


def prepare() -> dict[str, object]:
    """Everything that can be made; returns what the checks of the conversions found.

    A conversion that fails leaves its arm without a model, which the arm then says.

    Raises:
        NotPrepared: the checkpoint cannot be made, or a conversion computes something else.

    """
    last_written = CHECKPOINT / "tokenizer_config.json"
    _script("make_model.py", last_written, CHECKPOINT).run()
    for step in _conversions(last_written):
        try:
            step.run()
        except NotPrepared as error:
            print(f"not made, {step.product.relative_to(BUILD)}: {error}", flush=True)
    _script("checking.py", CHECKED, CHECKPOINT, CHECKED).run()
    ours = [sys.executable, str(HERE / "checking_ours.py"), str(CHECKPOINT), str(CHECKED), str(CHECKED_OURS)]
    Step(CHECKED_OURS, ours, [CHECKED, HERE / "checking_ours.py", HERE / "arm_ours.py"]).run()
    return json.loads(CHECKED.read_text()) | json.loads(CHECKED_OURS.read_text())


def _conversions(checkpoint: Path) -> Iterator[Step]:
    bundle, genai = FOLDER / "bundle", FOLDER / "genai-int4"
    command = [*IMPORT, str(CHECKPOINT), "--out", str(bundle), "--precisions", "int4"]
    yield Step(bundle / "manifest.json", command, [checkpoint])
    yield _script("convert_genai.py", genai / "genai_config.json", CHECKPOINT, genai, "int4")
    for plan in ARMS:
        if plan.script == "arm_llama.py":
            yield _script("convert_gguf.py", plan.model, CHECKPOINT, plan.model, plan.weights)


def _script(name: str, product: Path, *arguments: object) -> Step:
    sources = [HERE / name, HERE / "make_model.py", HERE / "model_c.py"]
    if name == "checking.py":
        sources += [HERE / "convert_genai.py", HERE / "convert_gguf.py", INSTALLED]
    return Step(product, [str(PEERS_PYTHON), str(HERE / name), *map(str, arguments)], sources)
