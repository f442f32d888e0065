"""The flags of the two scripts, and the road from a command line or a config file to a validated config."""
