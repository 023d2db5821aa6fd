"""Durable local storage: LMDB environments and segments. Blocking; called from worker threads."""
