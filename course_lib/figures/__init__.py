"""The live figures, one file a lesson; they know the lessons."""
