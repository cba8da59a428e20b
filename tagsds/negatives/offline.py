"""Offline hard negatives: what `tagsds-mine` found in the whole training set, and draws from it (AOQ; method 6)."""
