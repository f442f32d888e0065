"""What this machine has: cores, memory, versions of the software."""
