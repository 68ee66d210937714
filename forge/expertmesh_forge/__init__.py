"""The toolchain: reads dense models, carves them into experts, writes and checks bundles."""
