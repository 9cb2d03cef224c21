"""The demonstration behind `eorouter demo`: the whole service shown on one landscape, over HTTP, with a report."""
