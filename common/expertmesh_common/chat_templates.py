"""Where chat templates run: they come with models, from anywhere, so nothing but text may come of them.

Only the controller and the toolchain import this; the worker needs no jinja2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["template_sandbox"]


def template_sandbox(now: Callable[[], datetime] = datetime.now) -> ImmutableSandboxedEnvironment:
    """A sandbox with what templates of Hugging Face count on: trimmed blocks, loop controls, and three functions."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": lambda pattern: now().strftime(pattern)}
    return sandbox


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
