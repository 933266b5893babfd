"""The package with the project that it belongs to: configuration, rules and profiles, which `depoison init` lays out."""

import sys
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "workflow"))

from depoison.project import PARTS  # noqa: E402

CODE_ALONE = ignore_patterns("__pycache__", "*.egg-info", "fashion-mnist.png", "fashion-mnist.LICENSE", "templates")


class WithProject(build_py):
    """Puts a copy of the project into the package; its code is there to be read, as planning does."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        project = Path(self.build_lib, "depoison", "_project")
        for part in PARTS:
            source, target = HERE / part, project / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                copytree(source, target, dirs_exist_ok=True, ignore=CODE_ALONE)
            else:
                copy2(source, target)


setup(cmdclass={"build_py": WithProject})
