"""Whether the OpenAPI document is true: schemathesis asks every operation, with data that fits it and that does not."""
