"""The daemon that stores shards for others."""
