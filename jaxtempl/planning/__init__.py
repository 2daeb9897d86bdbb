"""What a training needs, without running it."""
