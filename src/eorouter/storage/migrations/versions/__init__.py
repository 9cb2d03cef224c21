"""One module per version; once released, a version is never edited."""
