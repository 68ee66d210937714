"""What the controller and the job worker agree on; only these two files of schemas and names, no Celery."""
