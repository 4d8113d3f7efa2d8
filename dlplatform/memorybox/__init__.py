"""The Soft Memory Box: RAM of a server, cut into segments that every worker reads and writes."""
