"""mialibrary's LiRA (JAX), median and each record's own spread: the targets are stacked below the shadows.

It scores every model against all the others; the last rows are the targets'.
"""

import numpy as np
from mialibrary.lira.compute_score import compute_lira_score  # type: ignore[import-not-found]
from mialibrary.lira.validate_inputs import validate_inputs  # type: ignore[import-not-found]

from benchmark.peers.told import given, show, tell


def main() -> None:
    arrays, _ = given()
    S, phi = arrays["shadow_phi"], arrays["phi"]
    stat = np.ascontiguousarray(np.concatenate([S, phi]).swapaxes(1, 2))  # [m + t, n, k]
    inside = np.concatenate([arrays["shadow_member"], arrays["target_member"]])

    def work() -> np.ndarray:
        scores = compute_lira_score(*validate_inputs(stat, inside, "stat", "in_indices"), False, True)
        return np.asarray(scores)[len(S) :]

    show(tell("mialibrary", work))


if __name__ == "__main__":
    main()
