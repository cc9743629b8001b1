"""What the endorsement tests share: a KDS on a local port, certificates of real chips, and made-up ones."""
