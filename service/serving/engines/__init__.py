"""What generates text behind the wire format: one module per engine."""
