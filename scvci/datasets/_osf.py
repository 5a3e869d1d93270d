"""Files of a project of the Open Science Framework, checked against the hashes it lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pooch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_API = "https://api.osf.io/v2"
_PROJECT = "q6tpk"
_FOLDER = "raw"
_TIMEOUT = 60


def download(names: Sequence[str], folder: str | Path) -> list[Path]:
    """Download files of the project's folder ``raw``, where they are not there already.

    Parameters
    ----------
    names
        Names of the files.
    folder
        Where to put them; made if it is not there.

    Returns
    -------
    Paths of the files, in the order of the names.

    Raises
    ------
    ConnectionError
        If the project cannot be reached.
    FileNotFoundError
        If the project does not list a file; with its name and what is listed.
    ValueError
        If a file fails its check. Nothing of it is kept.
    """
    listed = _list_files()
    missing = [name for name in names if name not in listed]
    if missing:
        raise FileNotFoundError(
            f"Project {_PROJECT} of the Open Science Framework lists no {', '.join(missing)} in "
            f"{_FOLDER!r}. Listed: {', '.join(sorted(listed)) or 'no file'}."
        )
    paths = []
    for name in names:
        url, sha256 = listed[name]
        path = pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=folder)
        paths.append(Path(path))
    return paths


def _list_files() -> dict[str, tuple[str, str]]:
    """Address and SHA-256 of each file of the folder, by name."""
    root = f"{_API}/nodes/{_PROJECT}/files/osfstorage/"
    for entry in _entries(root):
        if entry["attributes"]["kind"] == "folder" and entry["attributes"]["name"] == _FOLDER:
            inside = _entries(entry["relationships"]["files"]["links"]["related"]["href"])
            return {
                item["attributes"]["name"]: (
                    item["links"]["download"],
                    item["attributes"]["extra"]["hashes"]["sha256"],
                )
                for item in inside
                if item["attributes"]["kind"] == "file"
            }
    return {}


def _entries(url: str | None) -> Iterator[dict[str, Any]]:
    """Entries of a listing, page by page."""
    while url is not None:
        try:
            with urlopen(url, timeout=_TIMEOUT) as answer:
                page = json.load(answer)
        except (HTTPError, URLError, TimeoutError) as error:
            raise ConnectionError(
                f"{url} cannot be read ({error}). Try again where there is a network, or download "
                f"the files of https://osf.io/{_PROJECT} by hand and give their paths."
            ) from error
        yield from page["data"]
        url = page["links"].get("next")
