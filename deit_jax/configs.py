"""The recipes of configs/, as `deit_jax.configs` from any directory.

In the repository they lie beside this package. In a wheel they are a package of this
name, which Python finds before this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "configs")]
