import io
import json
import tarfile

import pytest
import yaml

from compress.core.errors import QCompressError
from compress.ship.bundle.image import Image, archived_reference


def save_archive(path, manifest):
    content = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


def test_an_image_in_an_archive_is_used_by_its_tag_and_carried(tiny_awq, make_bundle, tmp_path):
    archive = save_archive(tmp_path / "vllm.tar", [{"RepoTags": ["local/vllm:1.0"]}])
    bundle = make_bundle(tiny_awq, tmp_path / "out", image_file=archive)
    assert yaml.safe_load((bundle / "compose.yaml").read_text())["services"]["model"]["image"] == "local/vllm:1.0"
    assert (bundle / "image" / "vllm.tar").read_bytes() == archive.read_bytes()
    assert "image/vllm.tar" in (bundle / "SHA256SUMS").read_text()
    assert json.loads((bundle / "bundle.json").read_text())["runtime"]["image_file"] == "image/vllm.tar"


@pytest.mark.parametrize("manifest", [[{"RepoTags": None}], [{"RepoTags": []}], [{"RepoTags": ["--privileged x"]}]])
def test_an_archive_without_a_tag_is_refused(tmp_path, manifest):
    with pytest.raises(QCompressError, match="its image has no tag"):
        archived_reference(save_archive(tmp_path / "x.tar", manifest))


def test_a_file_that_is_no_archive_of_an_image_is_refused(tmp_path):
    file = tmp_path / "x.tar"
    for content in (b"", b"text"):
        file.write_bytes(content)
        with pytest.raises(QCompressError, match=r"x.tar: is no archive of `docker save`"):
            archived_reference(file)
    with pytest.raises(QCompressError, match=r"missing\.tar: No such file"):
        archived_reference(tmp_path / "missing.tar")


def test_an_image_without_a_digest_is_called_unpinned(tiny_awq, make_bundle, tmp_path):
    bundle = make_bundle(tiny_awq, tmp_path / "out", image="registry.local/vllm:1.0")
    assert "**Only its tag is known**" in (bundle / "README.md").read_text()
    assert json.loads((bundle / "bundle.json").read_text())["runtime"]["image_digest"] is None


def test_a_digest_replaces_nothing_of_the_tag():
    digest = f"sha256:{'a' * 64}"
    assert Image("a/b:1", digest).pinned == Image(f"a/b:1@{digest}", digest).pinned == f"a/b:1@{digest}"
