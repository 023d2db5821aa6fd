"""The ledger daemon: chain, mempool, gossip, mining in a worker process."""
