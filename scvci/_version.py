"""Version of the package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("scvci")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"
