"""Small images whose counterfactuals are known: a blob of a place, brightness and size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

SIDE = 8
_WIDTH = {"large": 2.2, "small": 1.1}


def blobs(n: int, seed: int = 0, **values: Any) -> AnnData:
    """Blobs on a dark ground: the place is the cell's own, brightness and size are treatments.

    ``values`` set a treatment to one value, or one for each cell; the same seed gives the same
    cells.
    """
    rng = np.random.default_rng(seed)
    top, left = rng.uniform(1, SIDE - 2, (2, n, 1, 1))
    brightness = rng.uniform(0.2, 1.0, n)
    size = rng.choice(["large", "small"], n)
    brightness = np.broadcast_to(values.get("brightness", brightness), n)
    size = np.broadcast_to(values.get("size", size), n)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    width = np.array([_WIDTH[label] for label in size])[:, None, None]
    distance = (rows - top) ** 2 + (columns - left) ** 2
    images = brightness[:, None, None] * np.exp(-distance / (2 * width**2))
    obs = pd.DataFrame(
        {"brightness": brightness, "size": size, "well": np.where(np.arange(n) % 2, "a", "b")},
        index=[f"cell{i}" for i in range(n)],
    )
    return AnnData(obs=obs, obsm={"image": images.astype(np.float32)[:, None]})
