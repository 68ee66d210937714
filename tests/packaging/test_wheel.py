"""The built wheel works without the checkout: every package, the command line, and a whole tiny mesh."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from models.tiny_bundle import make_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "expertmesh",
    "expertmesh_api",
    "expertmesh_common",
    "expertmesh_controller",
    "expertmesh_forge",
    "expertmesh_worker",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout by the tools of this environment, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; it borrows the dependencies of ours but none of our sources."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Ours comes after the wheel's own folder. addsitedir would also run our .pth files, which lead into the checkout.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *arguments], cwd=folder, env={**environment, "EXPERTMESH_HOME": str(folder / "home")},
        capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def test_the_wheel_holds_every_package_with_its_types_and_nothing_of_the_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if not name.startswith("expertmesh-")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert not [name for name in names if "test" in name.rpartition("/")[2]]


def test_every_module_imports_from_the_wheel_alone(python, tmp_path):
    script = (
        "import importlib, pkgutil, sys\n"
        f"for package in {PACKAGES!r}:\n"
        "    found = importlib.import_module(package)\n"
        "    for module in pkgutil.walk_packages(found.__path__, package + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "print(*sorted({m.__file__ for n, m in sys.modules.items() if n.partition('.')[0].startswith('expertmesh')\n"
        "               and getattr(m, '__file__', None)}), sep='\\n')\n"
    )
    done = run(python, tmp_path, "-c", script, timeout=120)
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert len(files) > 50
    assert [name for name in files if name.startswith(str(ROOT))] == []


def test_the_command_line_of_the_wheel_knows_every_group(python, tmp_path):
    assert run(python, tmp_path, "-m", "expertmesh.cli.main", "version").stdout.startswith("expertmesh ")
    shown = run(python, tmp_path, "-m", "expertmesh.cli.main", "--help").stdout
    names = ("up", "controller", "worker", "model", "demo", "generate", "nodes", "experts")
    assert [name for name in names if f"\n  {name} " not in shown] == []


def test_a_mesh_from_the_wheel_answers(python, tmp_path):
    bundle = make_tiny_bundle(tmp_path / "tiny")
    script = (
        "import os, signal, subprocess, sys, time\n"
        "up = subprocess.Popen([sys.executable, '-m', 'expertmesh.cli.main', 'up', '--model', sys.argv[1], '--workers',"
        " '2', '--store', 'memory', '--listen', f'unix:{sys.argv[2]}/m', '--cache', sys.argv[2] + '/c',"
        " '--ready-file', sys.argv[2] + '/r'])\n"
        "while not os.path.exists(sys.argv[2] + '/r') and up.poll() is None: time.sleep(0.05)\n"
        "from expertmesh import Client\n"
        "print(len(Client(f'unix:{sys.argv[2]}/m').complete('hi', max_tokens=5, ignore_eos=True).tokens), flush=True)\n"
        "up.send_signal(signal.SIGINT)\n"
        "sys.exit(up.wait(30))\n"
    )
    done = run(python, tmp_path, "-c", script, str(bundle), str(tmp_path), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "5"
