"""The table of cells whose outcome is an image, and what draws targets for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField

from . import _constants as keys
from ._attributes import read_attributes
from ._cells import in_batches, resolve_indices
from ._fields import encode_covariates, stratum_codes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import rich.table
    from anndata import AnnData

_CHUNK = 4096
#: Share of targets that are the treatment of another cell as a whole; the others change one
#: attribute and keep the rest.
_WHOLE_SHARE = 0.5


class ImageField(BaseAnnDataField):
    """Images of the cells, in ``obsm`` or flat in ``X``.

    Parameters
    ----------
    image_key
        Entry of ``obsm``; ``None`` for ``X``.
    shape
        Channels, height and width; ``None`` to read them off an entry of ``obsm``.
    """

    def __init__(self, image_key: str | None, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.image_key = image_key
        self.shape = shape

    @property
    def registry_key(self) -> str:
        """Key in the registry."""
        return REGISTRY_KEYS.X_KEY

    @property
    def attr_name(self) -> str:
        """Attribute of AnnData that holds the images."""
        return "X" if self.image_key is None else "obsm"

    @property
    def attr_key(self) -> str | None:
        """Key in it."""
        return self.image_key

    @property
    def is_empty(self) -> bool:
        """A model without images does not exist."""
        return False

    def validate_field(self, adata: AnnData) -> None:
        """Check that there are images of one shape."""
        find_shape(adata, self.image_key, self.shape)

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Return the shape; nothing is written."""
        return {"shape": list(find_shape(adata, self.image_key, self.shape))}

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Check that other images have the same shape."""
        check_shape(adata_target, self.image_key, tuple(state_registry["shape"]))
        return dict(state_registry)

    def get_summary_stats(self, state_registry: dict) -> dict[str, int]:
        """Count pixels, under scvi-tools' name for variables."""
        return {"n_vars": int(np.prod(state_registry["shape"]))}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        """No table of its own."""
        return None


def get_images(adata: AnnData, image_key: str | None) -> Any:
    """Return the array of images.

    Parameters
    ----------
    adata
        The cells.
    image_key
        Entry of ``obsm``; ``None`` for ``X``.

    Raises
    ------
    KeyError
        If the entry does not exist.
    ValueError
        If ``X`` is empty.
    """
    if image_key is None:
        if adata.X is None or not adata.n_vars:
            raise ValueError("adata.X is empty; pass image_key= for images in obsm.")
        return adata.X
    if image_key not in adata.obsm:
        found = ", ".join(repr(str(k)) for k in adata.obsm if not str(k).startswith("_scvi"))
        raise KeyError(
            f"obsm has no entry {image_key!r} (argument image_key). Entries found: "
            f"{found or 'none'}. Images are arrays of shape (cells, channels, height, width)."
        )
    images = adata.obsm[image_key]
    # Rows of a data frame are not what its brackets give.
    return images.to_numpy() if isinstance(images, pd.DataFrame) else images


def find_shape(
    adata: AnnData, image_key: str | None, shape: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    """Channels, height and width of the images of an AnnData.

    Parameters
    ----------
    adata, image_key
        See :func:`get_images`.
    shape
        The shape that a user gives, needed for flat images.

    Raises
    ------
    ValueError
        If flat images have no shape or another size, or an array has another shape.
    """
    array = get_images(adata, image_key)
    where = "adata.X" if image_key is None else f"obsm[{image_key!r}]"
    if shape is not None:
        shape = tuple(int(side) for side in shape)  # type: ignore[assignment]
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(
                f"image_shape={shape} must be three whole numbers: channels, height and width."
            )
    found = {2: None, 3: (1, *array.shape[1:]), 4: array.shape[1:]}.get(array.ndim)
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"{where} has shape {array.shape}; images are arrays of shape (cells, channels, "
            "height, width), (cells, height, width), or (cells, pixels) with image_shape=."
        )
    if found is None:
        if shape is None:
            raise ValueError(
                f"{where} holds {array.shape[1]} values per cell; say which image they are with "
                "image_shape=(channels, height, width)."
            )
        if np.prod(shape) != array.shape[1]:
            raise ValueError(
                f"image_shape={shape} has {int(np.prod(shape))} pixels, but {where} holds "
                f"{array.shape[1]} values per cell."
            )
        return shape
    found = tuple(int(side) for side in found)
    if shape is not None and shape != found:
        raise ValueError(f"image_shape={shape}, but the images in {where} have shape {found}.")
    return found


def check_shape(adata: AnnData, image_key: str | None, shape: tuple[int, ...]) -> None:
    """Raise unless the images of an AnnData have the shape of a model's.

    Parameters
    ----------
    adata, image_key
        See :func:`get_images`.
    shape
        Channels, height and width that the model was trained on.
    """
    array = get_images(adata, image_key)
    found = find_shape(adata, image_key, shape if array.ndim == 2 else None)  # type: ignore[arg-type]
    if found != tuple(shape):
        raise ValueError(
            f"The images have shape {found} (channels, height, width); the model was trained on "
            f"{tuple(shape)}."
        )


@dataclass(frozen=True, eq=False)
class ImageCells:
    """Cells of an AnnData as a model of images reads them; nothing is written.

    Attributes
    ----------
    adata
        Source of the cells.
    rows
        The cells in question, shape ``(n_rows,)``.
    shape
        Channels, height and width of the images.
    images
        The images, one row for each cell. Whole numbers of eight bits are read as shares of 255.
    values
        Values of the attributes, shape ``(n_obs, n_attributes)``.
    covariates
        Codes, shape ``(n_obs, n_covariates)``.
    stratum
        Codes, shape ``(n_obs,)``; negative where unknown.
    """

    adata: AnnData
    rows: np.ndarray
    shape: tuple[int, int, int]
    images: Any
    values: np.ndarray
    covariates: np.ndarray
    stratum: np.ndarray

    @classmethod
    def from_registry(
        cls, adata: AnnData, registry: dict[str, Any], indices: Any = None
    ) -> ImageCells:
        """Look up everything that a model needs.

        Parameters
        ----------
        adata
            Cells to read.
        registry
            Registry of the model.
        indices
            Rows, mask or names of the cells in question; ``None`` for all.

        Raises
        ------
        KeyError, ValueError
            With the column, value, level or shape that the model cannot read.
        """
        states = {k: v["state_registry"] for k, v in registry["field_registries"].items()}
        image_key = registry["setup_args"]["image_key"]
        shape = tuple(states[REGISTRY_KEYS.X_KEY]["shape"])
        check_shape(adata, image_key, shape)
        rows = resolve_indices(adata, indices)
        judged = None if indices is None else rows
        covariates = encode_covariates(adata, states[keys.COVARIATES_KEY], judged)
        return cls(
            adata=adata,
            rows=rows,
            shape=shape,
            images=get_images(adata, image_key),
            values=read_attributes(adata, states[keys.TREATMENT_KEY], judged),
            covariates=covariates,
            stratum=stratum_codes(covariates, states[keys.COVARIATES_KEY]),
        )

    @property
    def names(self) -> pd.Index:
        """Names of all cells of the AnnData."""
        return self.adata.obs_names

    @property
    def group(self) -> np.ndarray:
        """Stratum of each cell, within which splits are drawn."""
        return self.stratum

    def take(self, rows: np.ndarray) -> ImageCells:
        """Put other cells in question.

        Parameters
        ----------
        rows
            Rows of the AnnData.
        """
        return replace(self, rows=np.asarray(rows, dtype=np.int64))

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Flat images of rows in any order, shape ``(n_rows, n_pixels)``, float32."""
        block = self.images[rows]
        masked = np.ma.getmaskarray(block) if np.ma.isMaskedArray(block) else None
        block = block.toarray() if sparse.issparse(block) else np.asarray(block)
        flat = block.reshape(len(rows), -1)
        if flat.dtype == np.uint8:
            flat = flat.astype(np.float32) / 255
        flat = flat.astype(np.float32, copy=False)
        return flat if masked is None else np.where(masked.reshape(flat.shape), np.nan, flat)

    def check_pixels(self, support: tuple[float, float]) -> None:
        """Check the images of the cells in question.

        Parameters
        ----------
        support
            Smallest and largest value that a pixel may have.

        Raises
        ------
        ValueError
            With the cell at fault.
        """
        low, high = support
        for start in range(0, len(self.rows), _CHUNK):
            rows = self.rows[start : start + _CHUNK]
            pixels = self.pixels(rows)
            finite = np.isfinite(pixels).all(axis=1)
            wrong = ~finite | (pixels.min(axis=1) < low) | (pixels.max(axis=1) > high)
            if wrong.any():
                first = int(np.argmax(wrong))
                name, values = str(self.names[rows[first]]), pixels[first]
                if not finite[first]:
                    raise ValueError(f"The image of cell {name!r} has missing or infinite pixels.")
                raise ValueError(
                    f"The image of cell {name!r} has pixels from {values.min():g} to "
                    f"{values.max():g}; with likelihood='bernoulli' they must lie in [0, 1]. "
                    "Divide by the largest possible value, or choose likelihood='normal'."
                )

    def tensors(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Tensors of rows, under the names that the module reads."""
        arrays = {
            REGISTRY_KEYS.X_KEY: self.pixels(rows),
            keys.TREATMENT_KEY: self.values[rows].astype(np.float32),
            keys.COVARIATES_KEY: self.covariates[rows],
        }
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """Yield rows and tensors of the cells in question, in their order."""
        for part in in_batches(self.rows, batch_size):
            yield part, self.tensors(part)


class AttributeSampler:
    """Draw targets for whole batches from the values of other training cells of the stratum.

    Half of the targets are the treatment of another cell as a whole: together they are distributed
    as treatments are in the stratum, and the covariate-specific term is taken over them. The
    others take one attribute from the other cell and keep the rest, as interventions on a single
    attribute do; real cells with such values may not exist.

    Parameters
    ----------
    cells
        The training cells, those in question.
    """

    def __init__(self, cells: ImageCells) -> None:
        self.cells = cells
        stratum = cells.stratum[cells.rows]
        self._by_stratum = cells.rows[np.argsort(stratum, kind="stable")]
        n_strata = int(cells.stratum.max()) + 1
        self._count = np.bincount(stratum, minlength=n_strata)
        self._start = np.concatenate([[0], np.cumsum(self._count)])[:-1]

    def __call__(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw targets for factual cells of ``rows``."""
        stratum = self.cells.stratum[rows]
        offset = np.floor(rng.random(len(rows)) * self._count[stratum]).astype(np.int64)
        target = self.cells.values[self._by_stratum[self._start[stratum] + offset]]
        n_attributes = target.shape[1]
        whole = np.ones(len(rows), dtype=bool)
        if n_attributes > 1:
            whole = rng.random(len(rows)) < _WHOLE_SHARE
            changed = rng.integers(0, n_attributes, len(rows))
            kept = ~whole[:, None] & (np.arange(n_attributes) != changed[:, None])
            target = np.where(kept, self.cells.values[rows], target)
        return {
            keys.TARGET_KEY: target.astype(np.float32),
            keys.SUPPORTED_KEY: whole[:, None].astype(np.float32),
        }
