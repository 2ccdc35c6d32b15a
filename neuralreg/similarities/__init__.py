"""Similarities between modalities: normalised mutual information, and descriptors of self-similarity."""
