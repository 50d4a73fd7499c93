"""What is known of model families; how models are loaded and changed."""
