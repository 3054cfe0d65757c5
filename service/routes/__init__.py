"""HTTP routes, one file per resource, thin: they write wishes and read rows."""
