"""The Merkle search tree: an ordered map whose root names its content. Pure: nodes come and go through callables."""
