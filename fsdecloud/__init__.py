"""fsdecloud: a decentralized cloud that is mounted as a directory."""

__version__ = "0.1.0"
