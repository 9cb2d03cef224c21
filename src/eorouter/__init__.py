"""Earth-observation gateway and raster compute service.

`from eorouter import EoRouterClient` is all a client program needs; nothing of the service is imported for it, and
nothing at all until the name is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eorouter.client import EoRouterClient

__all__ = ["EoRouterClient", "__version__"]

__version__: str


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name == "EoRouterClient":
        from eorouter.client import EoRouterClient

        return EoRouterClient
    if name == "__version__":
        from importlib.metadata import version

        return version("eorouter")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
