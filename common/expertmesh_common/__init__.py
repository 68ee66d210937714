"""What the services share: bundles, graphs, the expert channel's frame, security, serving."""
