"""The one table of attacks. It hands each function its part of a game; a new attack is a row."""

import difflib
from collections.abc import Mapping, Sequence

from workbench.attack import Attack, Needs, asked, unmet
from workbench.blackbox_outputs import OUTPUTS
from workbench.blackbox_reference import REFERENCE
from workbench.blackbox_search import SEARCH
from workbench.whitebox_learned import LEARNED
from workbench.whitebox_weights import WEIGHTS

__all__ = ["ATTACKS", "Attack", "Needs", "asked", "chosen", "unmet"]

ATTACKS: Mapping[str, Attack] = {**OUTPUTS, **REFERENCE, **SEARCH, **WEIGHTS, **LEARNED}
SETS = ("default", "standard", "all")


def chosen(names: str | Sequence[str]) -> dict[str, Attack]:
    """Rows by name, or those of "default", "standard" (all that are not costly), or "all".

    Raises ValueError for unknown or repeated names, or none.
    """
    if names == "all":
        return dict(ATTACKS)
    if names in SETS:
        kept = {name: row.default if names == "default" else not row.costly for name, row in ATTACKS.items()}
        return {name: row for name, row in ATTACKS.items() if kept[name]}
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in ATTACKS:
            near = difflib.get_close_matches(name, ATTACKS, n=1)
            known = f"{near[0]} (did you mean that?)" if near else ", ".join(ATTACKS)
            raise ValueError(f"attacks must be {', '.join(SETS)}, or names such as {known}; got {name!r}")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"attacks must be one or more, each named once, got {', '.join(names) or 'none'}")
    return {name: ATTACKS[name] for name in names}
