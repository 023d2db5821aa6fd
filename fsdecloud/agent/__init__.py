"""The driver's child that talks to peers and the ledger daemon; it sees only ciphertext."""
