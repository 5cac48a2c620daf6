"""One training loop for teachers and students: resumable bit for bit, and stopped by the first non-finite value."""
