"""Connections: websockets between machines, sockets between local processes. Async; the only importer of trio_websocket."""
