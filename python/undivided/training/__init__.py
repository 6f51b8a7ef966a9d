"""The trainer: batches of like length, a schedule tied to updates or minutes, checkpoints exact to resume."""
