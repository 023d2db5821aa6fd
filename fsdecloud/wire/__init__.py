"""Messages between processes, and the state machines that read them. Pure."""
