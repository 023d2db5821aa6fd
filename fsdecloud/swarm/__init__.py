"""Where shards go and which peers are trusted with them: placement, redundancy, scoring. Pure."""
