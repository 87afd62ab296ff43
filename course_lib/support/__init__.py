"""The workshop: plain Python that keeps the lessons safe; it knows no lesson."""
