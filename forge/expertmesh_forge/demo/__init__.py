"""The demonstration behind `make run`: a real model, four processes, an answer that is proven right."""
