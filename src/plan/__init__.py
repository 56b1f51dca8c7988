"""What runs will take: memory, time, disk, and items that are too long."""
