"""What the operator of an installation sees in a browser: a page, its data, and the pages of Dask."""
