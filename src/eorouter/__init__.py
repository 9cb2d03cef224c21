"""Earth-observation gateway and raster compute service."""
