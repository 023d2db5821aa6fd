"""What fsdecloud reaches next to the ceiling of any Python driver, a plain directory and bare connections.

`python -m tests.bench` (or `make bench`) runs it; `python -m tests.bench --help` lists the choices.
"""
