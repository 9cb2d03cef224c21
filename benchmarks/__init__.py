"""Our speed against the peers. See README.md."""
