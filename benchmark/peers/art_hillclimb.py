"""ART's hill climbing, record by record: queries of each record, and whether it was made.

Either it is given our start (fair bits) and our change of k features without replacement (flipped, or drawn
anew), or it goes by defaults of its own: uniform reals, half of the features drawn with replacement, 40
queries and 6 tries a record.
"""

import numpy as np
import torch
from art.attacks.inference.membership_inference import ShadowModels  # type: ignore[import-not-found]
from art.estimators.classification import PyTorchClassifier  # type: ignore[import-not-found]

from benchmark.peers.told import Counted, given, show, tell

TRIES = 6  # of ART's public function, as is its confidence of 0.4


class Probable(Counted):
    """ART hands on what the net answers, and the climb needs probabilities."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(1)


def main() -> None:
    arrays, settings = given()
    net = Probable(arrays)
    d, c = int(arrays["w1"].shape[1]), len(arrays["b2"])
    model = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), (d,), c)
    climber, rng = ShadowModels(model, 0, random_state=0), np.random.default_rng(1)
    flips = settings["change"] == "flip"

    def start() -> np.ndarray:
        return np.asarray(rng.integers(0, 2, d), dtype=np.float32)

    def changed(record: np.ndarray, k: int) -> np.ndarray:
        at = rng.choice(d, k, replace=False, shuffle=False)
        x = record.copy()
        x[at] = 1 - x[at] if flips else rng.integers(0, 2, k)
        return x

    def climb(label: int) -> bool:
        """Whether a record was made."""
        try:
            if settings["change"] == "defaults":
                climber._hill_climbing_synthesis(model, label, 0.4, None)
            else:
                climber._hill_climbing_synthesis(
                    model,
                    label,
                    settings["conf_min"],
                    settings["k_max"],
                    max_iterations=settings["iter_max"],
                    max_rejections=settings["rej_max"],
                    min_features_randomized=settings["k_min"],
                    random_record_fn=start,
                    randomize_features_fn=changed,
                )
        except RuntimeError:  # so it says that no record was made
            return False
        return True

    def climbed(labels: np.ndarray) -> np.ndarray:
        """A row a label: queries, and 1 for success."""
        rows = np.zeros((len(labels), 2))
        for i, label in enumerate(labels.tolist()):
            net.asked = 0
            made = False
            for _ in range(TRIES if settings["change"] == "defaults" else 1):
                made = made or climb(label)
            rows[i] = net.asked, made
        return rows

    y = arrays["y"]
    once = None if settings["change"] != "defaults" else lambda: climbed(y[:2])
    show(tell("adversarial-robustness-toolbox", lambda: climbed(y), once))


if __name__ == "__main__":
    main()
