"""One file per revision; each is one transaction and works with the previous release's code."""
