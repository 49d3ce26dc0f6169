"""Rows of attacks whose shadows learned synthetic records: what scarcity of data costs the attacker."""

from collections.abc import Mapping
from functools import partial

from workbench.attack import Attack, Needs
from workbench.blackbox_outputs import OUTPUTS, SHOKRI
from workbench.blackbox_reference import CARLINI, REFERENCE
from workbench.synthetic_shadows import CLIMB, on_synthetic

QUICK = {"m": 2, "epochs": 2, "records": 40, "climb": 20}
AUX = Needs(aux=100)

_row = partial(
    Attack, family="synthesis", access="probabilities", random=True, costly=True, needs=AUX, quick=QUICK
)
_climbed = partial(_row, holds="probabilities", asks_made=CLIMB)
_drawn = partial(_row, holds="probabilities+aux", asks_made=1)
_noisy = partial(_row, holds="probabilities+aux")


_shadow = partial(on_synthetic, attack=OUTPUTS["shadow"].run)
_lira = partial(on_synthetic, attack=REFERENCE["lira-offline"].run)

SYNTHESISED: Mapping[str, Attack] = {
    "shadow-hillclimb": _climbed(
        partial(_shadow, method="hillclimb"), paper=SHOKRI, decision=0.5, default=True
    ),
    "shadow-marginals": _drawn(partial(_shadow, method="marginals"), paper=SHOKRI, decision=0.5),
    "shadow-noisy": _noisy(partial(_shadow, method="noisy"), paper=SHOKRI, decision=0.5, default=True),
    "lira-hillclimb": _climbed(partial(_lira, method="hillclimb"), paper=CARLINI),
    "lira-marginals": _drawn(partial(_lira, method="marginals"), paper=CARLINI),
    "lira-noisy": _noisy(partial(_lira, method="noisy"), paper=CARLINI),
}
