"""The command `glasslab`. Flags come from signatures; whatever takes time to import waits for its command."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from workbench.cli_zoo import ZOO
from workbench.options import AttackOptions, DataRoot, InvertOptions, SynthesizeOptions, ZooOptions
from workbench.parsing import Command, parsed

OURS = ("glasslab", "blackbox", "whitebox", "inversion", "synthesis", "workbench")
By = tyro.conf.arg

Names = Annotated[str | None, By(metavar="NAMES", help_behavior_hint="(default: the size's)")]
Some = Annotated[tuple[str, ...], Positional, By(metavar="NAME [NAME ...]", help_behavior_hint="(required)")]
Folder = Annotated[Path, By(metavar="DIR")]
Other = Annotated[Path | None, By(metavar="DIR", help_behavior_hint="(default: the zoo's own)")]
Also = Annotated[str | None, By(metavar="NAMES", help_behavior_hint="(default: the experiment's)")]
Out = Annotated[Path | None, By(metavar="DIR", help_behavior_hint="(default: runs/TIME-NAME)")]

Seeds = Annotated[
    tuple[int, ...], By(metavar="SEED [SEED ...]", help_behavior_hint="(default: --seed alone)")
]


def compare(
    zoo: OmitArgPrefixes[ZooOptions],
    attack: OmitArgPrefixes[AttackOptions],
    *,
    attacks: Names = None,
) -> int:
    """Train the models that are missing, run the attacks on them, print one table.

    Without a flag: scikit-learn's digits, about two minutes on two cores. Ctrl-C loses nothing.

    Args:
        attacks: default, standard (all but the costly), all, a family, or names joined by commas.
    """
    from workbench import scarce, steps
    from workbench.recipes import SIZES

    order, size = steps.ordered(zoo), SIZES[zoo.size]
    queries = order.queries if attack.queries is None else attack.queries
    search = size.search if attack.search is None else attack.search
    how = scarce.scarcity(attack.shadow_data)
    if how is not None:
        some = _split(attacks or ",".join(scarce.PLAYED))
        m = scarce.USUAL if zoo.shadows is None else zoo.shadows
        steps.refuse_early(order, some, queries, search, attack.mask, attack.evaluate, inside=False)
        order.settings["shadows"] = 0
        held = steps.trained(order)
        shadows = scarce.shadow_zoos(held, how, m, order.settings)
        return steps.compared(held, some, attack, queries=queries, search=search, shadows=shadows)
    names = _split(attacks or size.attacks)
    steps.refuse_early(order, names, queries, search, attack.mask, attack.evaluate)
    return steps.compared(steps.trained(order), names, attack, queries=queries, search=search)


def train(zoo: OmitArgPrefixes[ZooOptions]) -> int:
    """Train the models of a zoo, and stop there. More of them later: the same command with larger numbers."""
    from workbench import steps

    made = steps.trained(steps.ordered(zoo))
    steps.say(f"{len(made.shadow_member)} shadows and {len(made.target_member)} targets in {made.folder}")
    return 0


def attack(
    names: Some,
    attack: OmitArgPrefixes[AttackOptions],
    *,
    zoo: Folder,
    shadow_zoo: Other = None,
    data_root: DataRoot = None,
    device: str = "auto",
) -> int:
    """Run the attacks named on a zoo that is trained.

    Args:
        names: One or more attacks; or default, standard, all, or a family.
        zoo: Folder of the zoo whose targets are attacked.
        shadow_zoo: Folder of another zoo whose shadows the attacker holds.
        data_root: Folder of data files.
        device: auto, cpu, cuda, cuda:1 or mps.
    """
    from workbench import play, steps

    held = steps.opened(zoo, data_root, device)
    shadows = None if shadow_zoo is None else steps.opened(shadow_zoo, data_root, device)
    asked = _split(",".join(names))
    search = play.SEARCH if attack.search is None else attack.search
    return steps.compared(held, asked, attack, queries=attack.queries or 1, search=search, shadows=shadows)


def experiment(
    name: Annotated[str, Positional],
    zoo: OmitArgPrefixes[ZooOptions],
    *,
    also: Also = None,
    out: Out = None,
) -> int:
    """Run an experiment of the literature: metric-attacks, gap, transfer-architecture, transfer-data,
    overfitting, precision-cdf, entropy, records, ablations, layers, calibration, rounding, smoothing,
    scarcity.

    Trains the zoos that are missing, prints a short table, keeps all rows, their manifest and a picture.
    Without a flag: scikit-learn's digits, a minute or two on two cores.

    Args:
        name: One of the above.
        also: Further data sets, joined by commas (metric-attacks, gap, transfer-data).
        out: Folder for the files.
    """
    from workbench.experiments import command

    return command.experiment(name, zoo, also, out)


def invert(options: OmitArgPrefixes[InvertOptions]) -> int:
    """Rebuild an input of each label from a trained model; print how near it came, beside reference rows.

    Without a flag: MI-FACE on scikit-learn's digits, half a minute on two cores.
    """
    from workbench.inverting import command

    return command.invert(options)


def synthesize(options: OmitArgPrefixes[SynthesizeOptions]) -> int:
    """Make records for shadow models where there is no data; print how many, at what price, and how good.

    Without a flag: hill climbing on scikit-learn's digits, half a minute on two cores. Ctrl-C loses nothing.
    """
    from workbench.synthesising import command

    return command.synthesize(options)


def open_problem(
    zoo: OmitArgPrefixes[ZooOptions],
    *,
    seeds: Seeds = (),
    out: Annotated[Path | None, By(metavar="DIR", help_behavior_hint="(default: by data and zoo)")] = None,
    no_bought: bool = False,
) -> int:
    """Does holding the weights beat LiRA? Judges one frozen white-box attack, W, by a fixed protocol.

    Against LiRA with all shadows, and against B, the same machinery without the target's weights; with
    controls and costs. Without a flag: scikit-learn's digits, 64 shadows, 16 targets, weight decay 0.002.
    Ctrl-C loses no finished signal.

    Args:
        seeds: Zoos that are judged together, each split and trained anew.
        out: Folder for the results.
        no_bought: Leave out LiRA with the further shadows that W's seconds would have trained: half the time.
    """
    from workbench.open_problem import command

    return command.open_problem(zoo, seeds, out, bought=not no_bought)


def zoo() -> int:
    """Look after the models on disk: glasslab zoo ls | verify | extend | gc."""
    return main(["zoo", "--help"])


COMMANDS: Mapping[str, Command] = {
    "compare": compare,
    "train": train,
    "attack": attack,
    "experiment": experiment,
    "invert": invert,
    "synthesize": synthesize,
    "open-problem": open_problem,
    "zoo": zoo,
}


def main(words: Sequence[str] | None = None) -> int:
    """0; 1 where an attack raised or a file is damaged, 2 for mistakes of the user's, 130 after Ctrl-C."""
    try:
        return parsed(list(sys.argv[1:] if words is None else words), COMMANDS, ZOO, _fail)()
    except KeyboardInterrupt as stop:
        return _fail(130, f"stopped: {stop}" if str(stop) else "stopped: nothing was begun")
    except BrokenPipeError:  # who read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not _raised_by_us(error):
            raise
        return _fail(2, " ".join(str(error).split()))


def _fail(code: int, line: str) -> int:
    sys.stderr.write(f"glasslab: {line}\n")
    return code


def _raised_by_us(error: ValueError) -> bool:
    """Whether the line was written for the user; other errors are our own mistakes, and show where."""
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    root = Path(__file__).resolve().parents[1]
    return last.is_relative_to(root) and last.relative_to(root).parts[0] in OURS


def _split(names: str) -> str | list[str]:
    """A set's name stays a word."""
    some = [name.strip() for name in names.split(",") if name.strip()]
    return some[0] if some in (["all"], ["default"], ["standard"]) else some


if __name__ == "__main__":
    sys.exit(main())
