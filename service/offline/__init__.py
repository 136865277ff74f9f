"""Score without HTTP: a file of samples in, a file of results out."""
