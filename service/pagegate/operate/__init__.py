"""What a server's operator sees and does: gauges, the status page's facts, reloads, kernel events, its own trust."""
