"""The version of this package, in genotypes and configs of runs."""

VERSION = "0.1.0"
