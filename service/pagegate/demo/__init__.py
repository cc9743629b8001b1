"""The whole of pagegate on one machine: two attested processes, real memory, and five attacks that fail."""
