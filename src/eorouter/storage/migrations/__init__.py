"""Versions of the schema, oldest first; `eorouter.storage.migrate` walks them."""
