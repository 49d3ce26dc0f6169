"""Foolbox's HopSkipJump, all records as one batch; misclassified records are 0."""

import foolbox  # type: ignore[import-not-found]
import numpy as np
import torch

from benchmark.peers.told import Counted, given, show, tell


def main() -> None:
    arrays, settings = given()
    x, y = (torch.from_numpy(arrays[name][: settings["records"]]) for name in ("x", "y"))
    x, net = x.float(), Counted(arrays)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)

    def distances(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        net.asked = 0
        right = net(x).argmax(1) == y
        attack = foolbox.attacks.HopSkipJumpAttack(steps=settings["steps"])
        near = attack.run(model, x[right], foolbox.criteria.Misclassification(y[right]))
        distance = torch.zeros(len(x)).masked_scatter(right, (near - x[right]).norm(dim=1))
        return distance.numpy()

    found = tell("foolbox", lambda: distances(x, y), lambda: distances(x[:8], y[:8]))
    show(found | {"queries_a_record": net.asked / len(x)})


if __name__ == "__main__":
    main()
