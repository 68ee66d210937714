"""Importing takes the memory of a few experts, not of a layer and not of the file."""

import json
import subprocess
import sys

import gguf
import pytest

from models.moe_gguf import write_moe_gguf

# Run in a process of its own: the peak of one import, over what the process held before it.
_IMPORT = """
import json, sys
from pathlib import Path
from expertmesh_forge.importing.importer import ImportRequest, import_checkpoint

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

small, large, out = (Path(text) for text in sys.argv[1:])
import_checkpoint(ImportRequest(small, out / "small", ("fp32",)))
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
import_checkpoint(ImportRequest(large, out / "large", ("fp32",)))
print(json.dumps({"grown": status("VmHWM") - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0])
def test_an_import_never_holds_a_layer_of_experts(kind, checkpoint, tmp_path) -> None:
    hidden, width, experts, layers = 256, 512, 24, 3
    small = write_moe_gguf(tmp_path / "small.gguf", checkpoint(), kind=kind)
    folder = checkpoint(
        hidden_size=hidden, intermediate_size=width, num_local_experts=experts, num_hidden_layers=layers
    )
    large = write_moe_gguf(tmp_path / "large.gguf", folder, kind=kind)
    layer_bytes = 4 * 3 * hidden * width * experts

    arguments = [sys.executable, "-c", _IMPORT, str(small), str(large), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)

    grown = json.loads(done.stdout)["grown"]
    assert grown < layer_bytes, f"{grown / 2**20:.0f} MiB for layers of {layer_bytes / 2**20:.0f} MiB"
