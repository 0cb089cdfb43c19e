"""Many trainings and pictures on many workers: plan, jobs, results, and Ray, which runs them."""
