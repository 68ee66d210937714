"""Where chat templates run: they come with models, from anywhere, so nothing but text may come of them.

Only the controller and the toolchain import this; the worker needs no jinja2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from expertmesh_common.errors import CorruptData

__all__ = ["chat_template"]


def chat_template(source: str, now: Callable[[], datetime] = datetime.now) -> Template:
    """The template, compiled in the sandbox.

    Raises:
        CorruptData: the text is not a template.

    """
    try:
        return _sandbox(now).from_string(source)
    except TemplateSyntaxError as error:
        raise CorruptData(f"the chat template has an error in line {error.lineno}: {error}") from error
    except (TemplateError, SyntaxError, RecursionError) as error:  # what only compiling finds, as a stray `break`
        raise CorruptData(f"the chat template does not compile: {error}") from error


def _sandbox(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """A sandbox with what transformers gives templates.

    Blocks are trimmed, loops can be left, `generation` blocks render as what they hold, and there are `tojson`,
    `raise_exception` and `strftime_now`.
    """
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": lambda format: now().strftime(format)}  # noqa: A006
    return sandbox


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: marks for training, which render as what is between them.

    As in transformers, a variable that is set inside is not seen behind the block.
    """

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Scope:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
