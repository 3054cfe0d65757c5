"""One file per step; each only expands, or contracts what nobody reads any more."""
