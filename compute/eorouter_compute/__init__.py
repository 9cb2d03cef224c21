"""From request to pixels, without web, database or money.

A *method* plans (pure: parameters and item metadata in, shards out), runs one shard on a worker, and merges the parts.
The dispatcher above us owns the job; Dask below us only carries bounded, idempotent shards; everything between two
processes is msgspec bytes. `raster` and `vector` are the only modules that open data files, `cog` writes them.

Floors, top to bottom: testing, landscape / cluster / methods / product / zones, tables, ranks / cog, expression,
vector, quicklook / raster, polygons / method / attempt, grid / errors.
"""
