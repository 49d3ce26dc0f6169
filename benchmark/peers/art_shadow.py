"""ART's black-box attack with its neural net, on the answers of shadow models: P(in | p, y)."""

import numpy as np
import torch
from art.attacks.inference.membership_inference import (  # type: ignore[import-not-found]
    MembershipInferenceBlackBox,
)
from art.estimators.classification import PyTorchClassifier  # type: ignore[import-not-found]

from benchmark.peers.told import given, show, tell


def main() -> None:
    arrays, settings = given()
    p, y = arrays["p"], arrays["y"]
    c, net = p.shape[-1], torch.nn.Linear(1, p.shape[-1])  # is never asked: the answers are given
    model = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), (1,), c)
    answers, inside = arrays["shadow_p"].reshape(-1, c), arrays["shadow_member"].reshape(-1)
    labels = np.tile(y, len(arrays["shadow_p"]))
    torch.manual_seed(0)

    def scores(epochs: int) -> np.ndarray:
        attack = MembershipInferenceBlackBox(model, nn_model_epochs=epochs)
        attack.fit(None, labels[inside], None, labels[~inside], answers[inside], answers[~inside])
        return np.asarray(attack.infer(None, y, pred=p, probabilities=True)).squeeze(1)

    found = tell("adversarial-robustness-toolbox", lambda: scores(settings["epochs"]), lambda: scores(1))
    show(found)


if __name__ == "__main__":
    main()
