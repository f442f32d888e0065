"""What a person looks at: the log of a search, and the HTML page of a run."""
