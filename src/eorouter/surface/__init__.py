"""Projections of the registry: HTTP, OpenAPI, reference pages. Every one is a function of `Registry`."""
