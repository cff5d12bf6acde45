"""What a sweep shows while it runs, and the report that it leaves."""
