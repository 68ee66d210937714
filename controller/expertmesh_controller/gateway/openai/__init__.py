"""The OpenAI door: completions and chat completions over HTTP, as OpenAI's own clients speak it."""
