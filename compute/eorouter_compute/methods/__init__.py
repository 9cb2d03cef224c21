"""One file per method; each defines `METHOD`. Methods never import each other."""
