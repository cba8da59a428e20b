"""The only importer of deepspeed: build, checkpoint, resume, monitoring."""
