"""The storage peer: keeps shards for others within a quota, and signs for each one it holds."""
