"""The pyfuse3 adapter: convert, call, map errors."""
