"""What a run will take, before it is there: memory of each process, disk, and what moves between stages."""
