"""The stamp of an installation: what changes it, and what does not."""

from __future__ import annotations

import shutil

import pytest

from tests.install_digest import FILES, PROJECTS, ROOT, install_digest


@pytest.fixture
def tree(tmp_path):
    for name in (*PROJECTS, *FILES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_settings_of_linters_install_nothing(tree):
    before = install_digest(tree)
    project = tree / "pyproject.toml"
    project.write_text(project.read_text().replace("[tool.ruff]", "# a comment\n[tool.ruff]\nfix = false", 1))
    assert install_digest(tree) == before


@pytest.mark.parametrize("name", [*PROJECTS, *FILES])
def test_a_change_of_the_project_or_of_another_input_installs(tree, name):
    before = install_digest(tree)
    path = tree / name
    text = path.read_text()
    path.write_text(text.replace('version = "', 'version = "9', 1) if name in PROJECTS else f"{text}\n")
    assert install_digest(tree) != before


def test_another_folder_is_another_installation(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "tree"
    shutil.copytree(tree, other)
    assert install_digest(other) != install_digest(tree)


def test_every_source_of_the_kernels_counts():
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "model/backends/native").glob("*.[ch]")}
    assert sources == {name for name in FILES if name.startswith("model/")} - {"model/default/weights.txt"}
