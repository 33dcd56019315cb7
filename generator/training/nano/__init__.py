"""Everything that only makes the nano checkpoint."""
