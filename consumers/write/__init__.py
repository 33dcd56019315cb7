"""From a record's bytes to committed rows: one batch, one transaction, its poison aside."""
