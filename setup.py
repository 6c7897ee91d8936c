"""What setup.cfg cannot say: configs/ is installed as `deit_jax.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["deit_jax*", "teacher*"]), "deit_jax.configs"],
    package_dir={"deit_jax.configs": "configs"},
    package_data={"teacher": ["logits/digits/*"]},
)
