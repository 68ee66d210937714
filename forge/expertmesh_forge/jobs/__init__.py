"""Long work in a process of its own: the Celery application, its tasks, and the job worker's command."""
