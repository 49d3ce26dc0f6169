"""From words on the command line to a command with its arguments; mistakes in one line."""

from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import make_dataclass
from functools import partial
from inspect import signature
from io import StringIO
from typing import Any, get_type_hints

import tyro

ABOUT = "Privacy attacks on machine-learning classifiers: one zoo of trained models, every attack, one table."
CONFIG = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)

Command = Callable[..., int]


def parsed(
    words: list[str],
    top: Mapping[str, Command],
    zoo: Mapping[str, Command],
    fail: Callable[[int, str], int],
) -> Callable[[], int]:
    """The command with its arguments, not yet run. A mistake ends it with code 2 and one line, by `fail`."""
    nested = words[:1] == ["zoo"]
    commands, name = (zoo, "glasslab zoo") if nested else (top, "glasslab")
    forms = {_form(command): command for command in commands.values()}
    about = "Look after the models on disk." if nested else ABOUT
    said = StringIO()
    try:
        with redirect_stderr(said):
            filled = tyro.extras.subcommand_cli_from_dict(
                dict(zip(commands, forms, strict=True)),
                prog=name,
                description=about,
                args=words[nested:],
                config=CONFIG,
            )
    except SystemExit as end:
        if end.code:
            fail(2, _one_line(said.getvalue()))
        raise
    return partial(forms[type(filled)], **vars(filled))


def _form(command: Command) -> type:
    """A command's signature as a dataclass, which can be filled in without running the command."""
    hints = get_type_hints(command, include_extras=True)
    fields: list[Any] = [
        (p.name, hints[p.name]) if p.default is p.empty else (p.name, hints[p.name], p.default)
        for p in signature(command).parameters.values()
    ]
    form = make_dataclass(command.__name__, fields, kw_only=True)
    form.__doc__ = command.__doc__
    return form


def _one_line(box: str) -> str:
    """What the parser says in a box: its first paragraph, and what it thinks was meant."""
    lines = [line.strip("╭╮╰╯│ ") for line in box.splitlines()][1:]  # the first is a title
    rules = [i for i, line in enumerate(lines) if line and set(line) <= {"─", "-"}] + [len(lines)]
    start = 1 if rules[0] == 0 else 0  # without a box the title is underlined
    end = rules[start]
    first = " ".join(" ".join(lines[start:end]).split()).partition(" Got errors:")[0]
    flags = [line for line in lines[end:] if line.startswith("--") and set(line) != {"-"}]
    there = [line for line in lines[end:] if line.startswith("Available")]
    hints = [*(f"did you mean {line.split()[0]}?" for line in flags), *there]
    return f"{first} ({hints[0]})" if hints and hints[0].split()[-1].strip("?") not in first else first
