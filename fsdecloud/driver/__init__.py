"""The volume as the mount sees it: open files, committer, read-ahead. Async; knows nothing of pyfuse3."""
