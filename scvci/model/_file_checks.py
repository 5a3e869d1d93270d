"""Whether what a file says of a model fits together; whoever wrote it."""

from __future__ import annotations

import struct
import zipfile
from contextlib import contextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from scvci.data import _constants as keys

from ._stratum_cells import LATENT, SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from scvci.module import VCIModule
    from scvci.pooling import Pairs

    from ._calibration import Calibration

#: What reading, or building what was read, may raise.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Name the file in whatever error its content leads to.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ValueError
        In place of that error.
    """
    try:
        yield
    except _FAULTS as error:
        # Other errors say little by themselves.
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} holds no model that can be loaded: {reason}") from error


@contextmanager
def blueprint(n_tensors: int) -> Iterator[None]:
    """Build modules that take no memory, and are no larger than a file's.

    What settings ask for can be of any size; it is compared with the file's tensors first.

    Parameters
    ----------
    n_tensors
        Tensors in the file.
    """
    n_left = 2 * n_tensors

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal n_left
        n_left -= parameter is not None and parameter.is_meta
        if n_left < 0:
            raise ValueError("its settings ask for more weights than it holds")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        hook.remove()


def check_tensors(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors are those of a module, and finite.

    Parameters
    ----------
    module
        Module, perhaps without memory.
    state
        Tensors by name.

    Raises
    ------
    ValueError
        With the tensor at fault.
    """
    expected = module.state_dict()
    check_same_names(state, expected, "tensor")
    for name, value in state.items():
        for what, found, wanted in (
            ("shape", tuple(value.shape), tuple(expected[name].shape)),
            ("type", value.dtype, expected[name].dtype),
        ):
            if found != wanted:
                raise ValueError(f"tensor {name!r} has {what} {found}, not {wanted}")
        if not torch.isfinite(value).all():
            raise ValueError(f"tensor {name!r} is not finite: training has diverged")


def check_same_names(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Check that names are those that are expected.

    Parameters
    ----------
    found, expected
        Tables by name.
    what
        What they are names of.
    """
    for name in (*expected, *found):
        if name not in found:
            raise ValueError(f"{what} {name!r} is missing")
        if name not in expected:
            raise ValueError(f"{what} {name!r} is unknown")


def check_attributes(
    attributes: Mapping[str, Any], expected: Mapping[str, type | tuple[type, ...]]
) -> None:
    """Check names and types of attributes, and what they say of the parts of a split.

    Parameters
    ----------
    attributes
        Values by name.
    expected
        Types by name.
    """
    check_same_names(attributes, expected, "attribute")
    for name, types in expected.items():
        allowed = types if isinstance(types, tuple) else (types,)
        if type(attributes[name]) not in allowed:
            raise ValueError(f"attribute {name!r} is a {type(attributes[name]).__name__}")
    lists = {"trained_cells_": attributes["trained_cells_"], **attributes["parts_"]}
    for name, cells in lists.items():
        if type(cells) is not list or not all(type(cell) is str for cell in cells):
            raise ValueError(f"{name!r} holds something else than names of cells")
    for name in ("train_indices_", "validation_indices_", "test_indices_"):
        rows = attributes[name]
        if rows is not None and (rows.ndim != 1 or rows.dtype.kind != "i" or (rows < 0).any()):
            raise ValueError(f"attribute {name!r} holds something else than rows")


def check_array(name: str, array: Any, shape: tuple[int, ...], kind: str = "f") -> None:
    """Check shape and type of an array, and that it is finite.

    Parameters
    ----------
    name
        Its name, for the message.
    array
        The array.
    shape
        The shape that it must have.
    kind
        Kind of its numbers, as of :attr:`numpy.dtype.kind`.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind != kind:
        raise ValueError(f"{name!r} is no array of the right type")
    if array.shape != shape:
        raise ValueError(f"{name!r} has shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name!r} is not finite")


def check_codes(name: str, codes: Any, shape: tuple[int, ...], n: int, least: int = 0) -> None:
    """Check an array of codes.

    Parameters
    ----------
    name, codes, shape
        See :func:`check_array`.
    n
        Number of codes.
    least
        The lowest code, −1 where one is unknown.
    """
    check_array(name, codes, shape, "i")
    if codes.size and (codes.min() < least or codes.max() >= n):
        raise ValueError(f"{name!r} holds codes beyond {n}")


def check_calibration(
    calibration: Calibration, module: VCIModule, n_strata: int, is_whole: bool = True
) -> None:
    """Check that a calibration is one of a module, its reference's included.

    Parameters
    ----------
    calibration
        The calibration.
    module
        The module, perhaps without memory.
    n_strata
        Strata of the model.
    is_whole
        Whether it is of all strata and treatments, or of those of a reference.
    """
    pairs, forecast, cells = calibration.pairs, calibration.forecast, calibration.cells
    n_x, n_t = pairs.n_strata, pairs.n_treatments
    limits = n_strata, len(module.treatment_codes)
    if ((n_x, n_t) != limits) if is_whole else (n_x > limits[0] or n_t > limits[1]):
        raise ValueError(f"its calibration is of {n_x} strata and {n_t} treatments, not {limits}")
    sizes = module.sizes
    means, controls, n_genes = forecast.means, calibration.controls, sizes.n_genes
    for of in (pairs, means.pairs, controls.pairs):
        _check_pairs(of, n_x, n_t)
    if (means.pairs.rows(controls.pairs.stratum, controls.pairs.treatment) < 0).any():
        raise ValueError("its controls are not among its means")
    for name, array, n_rows in (
        ("shift", calibration.shift, len(pairs)),
        ("base", calibration.base, n_x),
        ("further", calibration.further, n_t),
        ("value", means.value, len(means.pairs)),
        ("noise", means.noise, len(means.pairs)),
        ("value", controls.value, len(controls.pairs)),
        ("noise", controls.noise, len(controls.pairs)),
        ("common", forecast.common, 1),
        ("treatment", forecast.treatment, n_t),
        ("stratum", forecast.stratum, n_x),
    ):
        check_array(name, array, (n_rows, n_genes))
    check_codes("control", np.asarray(forecast.control), (), n_t)
    check_array("variances", np.array(astuple(forecast.variances), dtype=float), (4,))
    check_codes("start", cells.start, (n_x + 1,), len(cells.values[LATENT]) + 1)
    if cells.start[0] or cells.start[-1] < cells.start.max() or (cells.n_cells < 0).any():
        raise ValueError("'start' does not ascend")
    n = int(cells.start[-1])
    values = dict(cells.values)
    check_array(LATENT, values.pop(LATENT), (n, module.config.architecture.n_latent))
    check_array(SIZE, values.pop(SIZE), (n, 1))
    covariates, n_levels = values.pop(keys.COVARIATES_KEY), sizes.n_levels
    check_array("covariates", covariates, (n, len(n_levels)), "i")
    for i, n_codes in enumerate(n_levels):
        check_codes("covariates", covariates[:, i], (n,), n_codes, least=-1)
    if sizes.n_continuous:
        check_array("continuous", values.pop(keys.CONTINUOUS_KEY), (n, sizes.n_continuous))
    if sizes.n_batches:
        check_codes("batch", values.pop(keys.BATCH_KEY), (n, 1), sizes.n_batches)
    check_same_names(values, {}, "value of cells")
    if calibration.reference is not None:
        check_calibration(calibration.reference, module, n_x, is_whole=False)


def _check_pairs(pairs: Pairs, n_strata: int, n_treatments: int) -> None:
    n = len(pairs.stratum)
    check_codes("stratum", pairs.stratum, (n,), n_strata)
    check_codes("treatment", pairs.treatment, (n,), n_treatments)
    code = pairs.stratum * n_treatments + pairs.treatment
    if (pairs.n_strata, pairs.n_treatments) != (n_strata, n_treatments) or (
        np.diff(code) <= 0
    ).any():
        raise ValueError("its pairs are not in order")


def check_similarity(similarity: Mapping[str, Any], n_members: int) -> None:
    """Check weights of treatments by features.

    Parameters
    ----------
    similarity
        Names and weights.
    n_members
        Members that were measured.
    """
    check_same_names(similarity, dict.fromkeys(["names", "weights"]), "part of 'similarity_'")
    names = similarity["names"]
    if type(names) is not list or not all(type(name) is str for name in names):
        raise ValueError("'similarity_' holds something else than names")
    check_array("weights", similarity["weights"], (len(names), n_members))
