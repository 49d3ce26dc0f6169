"""The one table of attacks. It hands each function its part of a game; a new attack is a row."""

import difflib
from collections.abc import Mapping, Sequence

from workbench.attack import Attack, Needs, asked, unmet
from workbench.blackbox_outputs import OUTPUTS
from workbench.blackbox_reference import REFERENCE
from workbench.blackbox_search import SEARCH
from workbench.inversions import INVERSIONS
from workbench.synthesised import SYNTHESISED
from workbench.whitebox_joint import JOINT
from workbench.whitebox_learned import LEARNED
from workbench.whitebox_tests import TESTS
from workbench.whitebox_weights import WEIGHTS

__all__ = ["ATTACKS", "Attack", "Needs", "asked", "chosen", "unmet"]

ATTACKS: Mapping[str, Attack] = {
    **OUTPUTS,
    **REFERENCE,
    **SEARCH,
    **WEIGHTS,
    **LEARNED,
    **TESTS,
    **JOINT,
    **INVERSIONS,
    **SYNTHESISED,
}
SETS = ("default", "standard", "all", "blackbox", "whitebox", "inversion", "synthesis")
LENIENT = SETS[1:]  # in which an attack that lacks something is a row with an error


def chosen(names: str | Sequence[str]) -> dict[str, Attack]:
    """Rows by name or set: "default", "standard" (all that are not costly), "all", or those of a family.

    Raises ValueError for unknown or repeated names, or none.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in ATTACKS and name not in SETS:
            near = difflib.get_close_matches(name, ATTACKS, n=1)
            known = f"{near[0]} (did you mean that?)" if near else ", ".join(ATTACKS)
            raise ValueError(f"attacks must be {', '.join(SETS)}, or names such as {known}; got {name!r}")
    if len(set(wanted)) < len(wanted) or not wanted:
        raise ValueError(f"attacks must be one or more, each named once, got {', '.join(wanted) or 'none'}")
    return {name: ATTACKS[name] for each in wanted for name in _rows(each)}


def demanded(names: str | Sequence[str]) -> set[str]:
    """Those asked for by name, or by "default": they must be able to run."""
    wanted = [names] if isinstance(names, str) else list(names)
    return {name for each in wanted if each not in LENIENT for name in _rows(each)}


def _rows(name: str) -> list[str]:
    """The names in a set; a name is a set of one."""
    if name in ATTACKS:
        return [name]
    if name == "default":
        return [each for each, row in ATTACKS.items() if row.default]
    if name == "standard":
        return [each for each, row in ATTACKS.items() if not row.costly]
    return [each for each, row in ATTACKS.items() if name in ("all", row.family)]
