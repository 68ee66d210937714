"""The model in every engine's own format under build/peers/, made when it is missing or its script is newer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ARMS", "HERE", "PEERS_PYTHON", "ArmPlan", "NotPrepared", "prepare"]

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"
FOLDER = BUILD / "peers"
PEERS_PYTHON = BUILD / "peers-venv" / "bin" / "python"
CHECKPOINT = FOLDER / "model-c"
CHECKED = FOLDER / "checked.json"
IMPORT = (str(Path(sys.executable).with_name("expertmesh")), "model", "import")


class NotPrepared(Exception):
    """A step failed; the message is its last line."""


@dataclass(frozen=True)
class ArmPlan:
    """`weights` names their format in `model_c.BITS`."""

    name: str
    script: str
    python: Path
    model: Path
    weights: str


@dataclass(frozen=True)
class Step:
    """`product` is the file that is there when `command` is through; `sources` are older than it, or it is made anew."""

    product: Path
    command: Sequence[str]
    sources: Sequence[Path]

    def run(self) -> None:
        if self.product.exists() and self.product.stat().st_mtime > max(s.stat().st_mtime for s in self.sources):
            return
        print(f"preparing {self.product.relative_to(BUILD)}", flush=True)
        self.product.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(self.command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise NotPrepared(said[-1] if said else f"{self.command[1]} ended with {done.returncode}")


ARMS = (
    ArmPlan("expertmesh", "arm_ours.py", Path(sys.executable), FOLDER / "bundle", "int4"),
    ArmPlan("transformers", "arm_transformers.py", PEERS_PYTHON, CHECKPOINT, "fp32"),
    ArmPlan("onnxruntime-genai", "arm_genai.py", PEERS_PYTHON, FOLDER / "genai-int4", "int4"),
    ArmPlan("llama.cpp Q4_0", "arm_llama.py", PEERS_PYTHON, FOLDER / "gguf" / "Q4_0.gguf", "Q4_0"),
    ArmPlan("llama.cpp Q8_0", "arm_llama.py", PEERS_PYTHON, FOLDER / "gguf" / "Q8_0.gguf", "Q8_0"),
)


def prepare() -> str:
    """Everything that can be made; returns what the check of the conversions found, as JSON text.

    A conversion that fails leaves its arm without a model, which the arm then says.

    Raises:
        NotPrepared: the checkpoint cannot be made, or a conversion computes something else.

    """
    weights = CHECKPOINT / "model.safetensors"
    _script("make_model.py", weights, CHECKPOINT).run()
    manifest = FOLDER / "bundle" / "manifest.json"
    steps = [Step(manifest, [*IMPORT, str(CHECKPOINT), "--out", str(manifest.parent), "--precisions", "int4"], [weights])]
    genai = FOLDER / "genai-int4"
    steps.append(_script("convert_genai.py", genai / "genai_config.json", CHECKPOINT, genai, "int4"))
    for plan in ARMS:
        if plan.script == "arm_llama.py":
            steps.append(_script("convert_gguf.py", plan.model, CHECKPOINT, plan.model, plan.weights))
    for step in steps:
        try:
            step.run()
        except NotPrepared as error:
            print(f"not made, {step.product.relative_to(BUILD)}: {error}", flush=True)
    _script("checking.py", CHECKED, CHECKPOINT, CHECKED).run()
    return CHECKED.read_text()


def _script(name: str, product: Path, *arguments: object) -> Step:
    sources = [HERE / name, HERE / "make_model.py", HERE / "model_c.py"]
    if name == "checking.py":
        sources += [HERE / "convert_genai.py", HERE / "convert_gguf.py"]
    return Step(product, [str(PEERS_PYTHON), str(HERE / name), *map(str, arguments)], sources)
