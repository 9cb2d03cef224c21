"""What outlives a process: rows in a database, bytes in an object store."""

import msgspec

from eorouter.storage.database import Database
from eorouter.storage.objects import Objects


class Stores(msgspec.Struct, frozen=True, kw_only=True):
    """The two places where state is kept."""

    db: Database
    objects: Objects
