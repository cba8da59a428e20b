"""Pictures -> regions by a vision model of Hugging Face: the core of tagsds-extract, and pictures as input from Python."""
