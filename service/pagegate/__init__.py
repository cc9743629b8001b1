"""pagegate: memory pages cross between confidential VMs only after both sides have proven what they run."""
