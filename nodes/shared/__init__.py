"""Types, inputs and folders that several nodes use."""
