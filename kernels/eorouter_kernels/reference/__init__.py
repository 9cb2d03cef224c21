"""Plain-NumPy twins of the kernels, one file per kernel module, written to be read: the oracle of each kernel."""
