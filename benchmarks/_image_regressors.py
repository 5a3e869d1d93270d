"""Regressors of attributes from images, for the effectiveness of counterfactual images.

``python benchmarks/_image_regressors.py`` trains them on 20,000 real images and prints their mean
absolute errors on the real test images, which is as well as a perfect model can score.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from scvci.metrics import effectiveness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Real data lie beside the checkout, not in it.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def train_regressors(
    images: np.ndarray,
    attributes: Mapping[str, np.ndarray],
    *,
    epochs: int = 4,
    batch_size: int = 128,
    seed: int = 0,
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Train one small network for all attributes.

    Parameters
    ----------
    images
        Real images on [0, 1], shape ``(n_images, 28, 28)`` or ``(n_images, 1, 28, 28)``.
    attributes
        Values of each attribute, shape ``(n_images,)``.
    epochs, batch_size, seed
        Of Adam with a learning rate that rises and falls.

    Returns
    -------
    For each attribute a function from images to values in its units, as ``effectiveness`` takes.
    """
    torch.manual_seed(seed)
    values = np.stack([np.asarray(v, dtype=np.float32) for v in attributes.values()], axis=1)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    x, y = _tensor(images), torch.from_numpy((values - mean) / scale)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, len(attributes))),
    )
    steps = epochs * (len(x) // batch_size)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))[: len(x) // batch_size * batch_size]
        for rows in order.split(batch_size):
            loss = nn.functional.mse_loss(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def predict(images: np.ndarray, column: int) -> np.ndarray:
        scores = torch.cat([network(part)[:, column] for part in _tensor(images).split(1000)])
        return mean[column] + scale[column] * scores.numpy()

    return {
        name: lambda images, column=column: predict(images, column)
        for column, name in enumerate(attributes)
    }


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(images, dtype=np.float32)).reshape(-1, 1, 28, 28)


def main() -> None:
    data = np.load(DATA / "morpho_mnist.npz")
    part = slice(0, 20_000)
    names = ("thickness", "intensity")
    start = time.perf_counter()
    regressors = train_regressors(
        data["train_image"][part] / 255, {name: data[f"train_{name}"][part] for name in names}
    )
    seconds = time.perf_counter() - start
    truth = {name: data[f"test_{name}"] for name in names}
    errors = effectiveness(data["test_image"] / 255, truth, regressors)
    print(f"{errors} after {seconds:.0f} s of training")


if __name__ == "__main__":
    main()
