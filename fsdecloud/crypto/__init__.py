"""Keys, the recovery phrase, sealing, signatures and hash trees. Pure: randomness comes in as arguments."""
