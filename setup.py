"""The one thing that pyproject.toml cannot say: the wheel carries the top-level `configs/` inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxtempl*", "converters*"]), "jaxtempl.configs"],
    package_dir={"jaxtempl.configs": "configs"},
)
