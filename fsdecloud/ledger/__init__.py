"""The ledger's rules: transactions, blocks, work, state transition, fork choice, mempool. Pure."""
