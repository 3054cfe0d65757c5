"""What is wrong with preference data, seen before any accelerator-hour is spent."""
