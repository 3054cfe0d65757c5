"""People, rows and time: the HTTP API, the reconciler, serving and the command line."""
