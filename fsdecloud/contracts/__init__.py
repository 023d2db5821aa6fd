"""The contract language, its machine, and the standard contracts. Pure."""
