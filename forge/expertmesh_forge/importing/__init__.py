"""From a Hugging Face checkpoint folder to a model bundle, tensor by tensor and without torch."""
