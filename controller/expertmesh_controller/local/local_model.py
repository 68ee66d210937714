"""The models of `expertmesh up`: bundles on this machine, each perhaps under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expertmesh_common.bundle.manifest import MANIFEST_NAME, Manifest, Precision, read_manifest
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.local_layers import held_layers
from expertmesh_controller.model_settings import named_path

DEMO_BUNDLE = Path("build/demo-bundle")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A bundle's folder and what is in it, served under `name`."""

    name: str
    folder: Path
    manifest: Manifest

    @property
    def experts(self) -> int:
        return sum(len(layer.experts) for layer in self.manifest.layers)

    def experts_elsewhere(self, numerics: str, local_layers: str) -> int:
        """The experts that workers hold.

        Raises:
            InvalidInput: `local_layers` names layers that the model does not have.

        """
        held = held_layers(self.manifest, numerics, local_layers)
        return sum(len(layer.experts) for layer in self.manifest.layers if layer.index not in held)


def find_bundles(asked: Sequence[str]) -> tuple[tuple[str, Path], ...]:
    """(name or "", folder) of every bundle to serve. Each is asked for as `PATH` or `NAME=PATH`.

    Raises:
        InvalidInput: none was named and the demo's has not been made.

    """
    if asked:
        return tuple(named_path(text) for text in asked)
    if (DEMO_BUNDLE / MANIFEST_NAME).is_file():
        return (("", DEMO_BUNDLE),)
    raise InvalidInput(
        f"no --model was given and there is no {DEMO_BUNDLE}: `expertmesh demo` makes it, "
        "`expertmesh model convert` makes one from your model"
    )


def local_models(bundles: Sequence[tuple[str, Path]], precision: Precision) -> tuple[LocalModel, ...]:
    """The models in these folders.

    Raises:
        NotHere, CorruptData: there is no bundle in a folder, or what is there is none.
        InvalidInput: two have one name, or one has no such precision.

    """
    found: dict[str, LocalModel] = {}
    for name, folder in bundles:
        manifest = read_manifest(folder)
        model = LocalModel(name or manifest.name, folder.resolve(), manifest)
        if precision not in manifest.precisions:
            allowed = ", ".join(manifest.precisions)
            raise InvalidInput(f"model {model.name} has no precision {precision}; allowed are {allowed}")
        if model.name in found:
            raise InvalidInput(
                f"two models are named {model.name!r}: give one another name with --model NAME={model.folder}"
            )
        found[model.name] = model
    return tuple(found.values())


def model_arguments(bundles: Sequence[tuple[str, Path]]) -> tuple[str, ...]:
    """The flags that tell a controller to serve them."""
    return tuple(part for name, folder in bundles for part in ("--model", f"{name}={folder}" if name else str(folder)))
