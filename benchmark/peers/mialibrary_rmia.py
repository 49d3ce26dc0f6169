"""mialibrary's RMIA (NumPy), online: the target is stacked above the shadows, and its row is taken.

Of an odd number of models it leaves out the last: here one shadow.
"""

import numpy as np
from mialibrary.rmia.compute_score import compute_score_rmia  # type: ignore[import-not-found]
from mialibrary.rmia.transform_inputs import transform_inputs  # type: ignore[import-not-found]
from mialibrary.rmia.validate_inputs import validate_inputs  # type: ignore[import-not-found]

from benchmark.peers.told import given, show, tell


def main() -> None:
    arrays, _ = given()
    stat, population = (
        np.concatenate([arrays[name], arrays[f"shadow_{name}"]])[..., None] for name in ("phi", "phi_aux")
    )
    inside = np.concatenate([arrays["target_member"], arrays["shadow_member"]])

    def work() -> np.ndarray:
        x, z, rows, models = transform_inputs(stat, population, inside, False)
        names = ("stat", "stat_pop", "in_indices")
        scores = compute_score_rmia(*validate_inputs(x, z, rows, *names), False, num_models=models)
        return np.asarray(scores[: len(arrays["phi"])])

    show(tell("mialibrary", work))


if __name__ == "__main__":
    main()
