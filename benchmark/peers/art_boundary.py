"""ART's HopSkipJump, the distance of its label-only decision-boundary attack; misclassified records are 0.

Its iterations are set so that it asks about as many queries as the budget; what it asked is reported.
"""

import numpy as np
import torch
from art.attacks.evasion import HopSkipJump  # type: ignore[import-not-found]
from art.estimators.classification import PyTorchClassifier  # type: ignore[import-not-found]

from benchmark.peers.told import Counted, given, show, tell


def main() -> None:
    arrays, settings = given()
    x, y = (arrays[name][: settings["records"]] for name in ("x", "y"))
    x, net = x.astype(np.float32), Counted(arrays)
    model = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0))
    np.random.seed(0)  # noqa: NPY002, ART draws from it

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        net.asked = 0
        attack = HopSkipJump(model, max_iter=settings["steps"], verbose=False)
        near = attack.generate(x, np.eye(10, dtype=np.float32)[y])
        right = model.predict(x).argmax(1) == y
        return np.asarray(np.linalg.norm(near - x, axis=1) * right)

    found = tell("adversarial-robustness-toolbox", lambda: distances(x, y), lambda: distances(x[:2], y[:2]))
    show(found | {"queries_a_record": net.asked / len(x)})


if __name__ == "__main__":
    main()
