"""What a sweep shows while it runs, and its report."""
