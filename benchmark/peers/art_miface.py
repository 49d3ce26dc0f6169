"""ART's MIFace on softmax regression from the zero image: seconds, steps asked of it, confidence reached."""

import sys
from pathlib import Path

import numpy as np
import torch
from art.attacks.inference.model_inversion import MIFace  # type: ignore[import-not-found]
from art.estimators.classification import PyTorchClassifier  # type: ignore[import-not-found]

from benchmark.peers.told import given, show, tell


class Stepped(torch.nn.Linear):
    """Softmax regression that counts its backward passes: ART stops and batches by rules of its own."""

    passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x.float())
        if z.requires_grad:
            z.register_hook(self.count)
        return z

    def count(self, _: torch.Tensor) -> None:
        self.passes += 1


def main() -> None:
    arrays, settings = given()
    w, b = arrays["w"], arrays["b"]
    net = Stepped(w.shape[1], w.shape[0])
    net.weight.data, net.bias.data = torch.from_numpy(w).float(), torch.from_numpy(b).float()
    model = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), (w.shape[1],), len(w))
    y = np.arange(settings["labels"])

    def inverted(steps: int) -> np.ndarray:
        attack = MIFace(
            model,
            max_iter=steps,
            window_length=100,
            threshold=0.99,
            batch_size=settings["batch"],
            learning_rate=0.1,
            verbose=False,
        )
        net.passes = 0
        start = np.zeros((len(y), w.shape[1]), dtype=np.float32)
        return np.asarray(attack.infer(start, y), dtype=np.float64)

    found = tell("adversarial-robustness-toolbox", lambda: inverted(settings["steps"]), lambda: inverted(2))
    z = np.load(Path(sys.argv[1]) / "against.npy") @ w.T + b
    p = np.exp(z - z.max(1, keepdims=True))
    confidence = (p / p.sum(1, keepdims=True))[np.arange(len(y)), y]
    show(found | {"backward_passes": net.passes, "confidence_median": float(np.median(confidence))})


if __name__ == "__main__":
    main()
