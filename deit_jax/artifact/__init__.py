"""What `deit_jax.export` puts beside a model; it runs without this package."""
