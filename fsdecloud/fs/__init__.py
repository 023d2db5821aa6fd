"""What a file system is made of: inodes, directory entries, chunk maps, operation records. Pure."""
