"""The one place that writes results into a user's AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scvci._version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

#: Entry of ``uns`` that says what each result holds.
UNS_KEY = "scvci"

type Place = Literal["layers", "obs", "obsm", "uns"]


@dataclass(frozen=True)
class Results:
    """Write layers, columns and entries, but nothing over what is registered or not ours.

    A result may take the place of an earlier one of the same kind for the same treatment, and of
    nothing else.

    Attributes
    ----------
    adata
        Where to write.
    setup_args
        Arguments of ``setup_anndata``, which name what is registered.
    """

    adata: AnnData
    setup_args: Mapping[str, Any]

    @property
    def registered(self) -> dict[str, set[str]]:
        """Names that a model reads, by place."""
        setup = self.setup_args
        single = ("treatment_key", "dose_key", "size_factor_key", "batch_key")
        several = ("treatment_keys", "categorical_covariate_keys", "continuous_covariate_keys")
        columns = {str(setup[key]) for key in single if setup.get(key) is not None}
        columns |= {str(name) for key in several for name in setup.get(key) or []}
        embeddings = setup.get("treatment_embeddings")
        matrices = (setup.get("treatment_key"), setup.get("image_key"))
        return {
            "layers": {str(name) for name in (setup.get("layer"),) if name is not None},
            "obs": columns,
            "obsm": {str(name) for name in matrices if name is not None},
            "uns": {UNS_KEY, *([embeddings] if isinstance(embeddings, str) else [])},
        }

    @property
    def records(self) -> dict[str, Any]:
        """What ``uns`` says of each result."""
        records = self.adata.uns.get(UNS_KEY, {})
        if not isinstance(records, Mapping):
            raise ValueError(
                f"uns[{UNS_KEY!r}] is taken ({type(records).__name__}), but scvci records there "
                "what its results hold. Move it to another key."
            )
        return dict(records)

    def check(self, place: Place, name: str, kind: str, treatment: str | None = None) -> None:
        """Refuse a name whose content would be lost; call it before anything is computed.

        Parameters
        ----------
        place
            Attribute of AnnData.
        name
            Key in it.
        kind
            Kind of the result.
        treatment
            What the result is for; ``None`` where any treatment may replace another.

        Raises
        ------
        ValueError
            With what the entry is.
        """
        where = f"{place}[{name!r}]"
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                f"{name!r} must be a text without '/', which files cannot hold in names."
            )
        records = self.records
        if name in self.registered[place] or name.startswith("_scvi"):
            raise ValueError(
                f"{where} is registered: the model reads it. Choose another name for the result."
            )
        record = records.get(name)
        if record is not None and not isinstance(record, Mapping):
            raise ValueError(
                f"uns[{UNS_KEY!r}][{name!r}] was not written by scvci, but the record of {where} "
                "belongs there. Move it to another key."
            )
        if record is not None and record.get("place", place) != place:
            elsewhere = getattr(self.adata, record["place"])
            if name in elsewhere:
                raise ValueError(
                    f"{where} would take over the record of {record['place']}[{name!r}] in "
                    f"uns[{UNS_KEY!r}]. Choose another name."
                )
            record = None
        if name not in getattr(self.adata, place):
            return
        if record is None:
            raise ValueError(
                f"{where} exists and was not written by scvci. Choose another name, or delete it."
            )
        held = record.get("treatment")
        if record.get("kind") != kind or (treatment is not None and held != treatment):
            raise ValueError(
                f"{where} holds the {record.get('kind', 'result')} for {held!r}. Choose another "
                "name, or delete it."
            )

    def write(self, place: Place, name: str, values: Any, record: Mapping[str, Any]) -> None:
        """Write a result that was checked, and record what it holds.

        Parameters
        ----------
        place, name
            Where.
        values
            The result.
        record
            What it holds; at least ``kind`` and ``treatment``.
        """
        getattr(self.adata, place)[name] = values
        records = self.records
        records[name] = {**record, "place": place, "version": __version__}
        self.adata.uns[UNS_KEY] = records


def safe_name(name: str) -> str:
    """Name that files can hold: ``/`` separates groups there and becomes ``_``."""
    return name.replace("/", "_")
