"""What a student learns from: its teacher's targets, live or cached, and the objective that compares the two."""
