"""`expertmesh doctor`: is this machine fit for a mesh, and is the mesh well? Each line says what to do."""

from expertmesh.cli.doctor.command import register

__all__ = ["register"]
