"""What a source means."""

import pytest

from backends.errors import ModelFileUnusable
from backends.pulling.source import Source, parse_source

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://o/r/m.gguf", Source("hub", "o/r", "m.gguf")),
        ("hf://o/r/folder/m-Q4_K_M.gguf@v1.2", Source("hub", "o/r", "folder/m-Q4_K_M.gguf", "v1.2")),
        ("hf://o/r/m.gguf@refs/pr/3", Source("hub", "o/r", "m.gguf", "refs/pr/3")),
        (f"hf://o/r/m.gguf#sha256={DIGEST}", Source("hub", "o/r", "m.gguf", sha256=DIGEST)),
        (f"https://h/a/m.gguf?x=1#sha256={DIGEST.upper()}", Source("url", "https://h/a/m.gguf?x=1", sha256=DIGEST)),
        ("http://h:8000/m.gguf", Source("url", "http://h:8000/m.gguf")),
        ("file:/data/m.gguf", Source("file", "/data/m.gguf")),
        ("file:///data/m.gguf", Source("file", "/data/m.gguf")),
        ("/data/m.gguf", Source("file", "/data/m.gguf")),
    ],
)
def test_sources_are_understood(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert source.name.startswith("m") and source.name.endswith(".gguf")


@pytest.mark.parametrize(
    "text",
    [
        "", "hf://", "hf://owner", "hf://owner/repo", "hf://owner/repo/", "hf://o/r/../m.gguf", "hf://o/../../m.gguf", "hf://o/r/m.gguf@",
        "hf://o/r/m.gguf@../x", "hf://o/r/m.bin", "hf://o/r/a b.gguf", "https://h/", "https:///m.gguf", "https://h/m.safetensors",
        "https://h:99999999/m.gguf", "https://h/m\n.gguf", "https://h/%2e%2e%2fm.gguf%00", "https://h/.gguf", "ftp://h/m.gguf", "s3://b/m.gguf",
        "hf://o/r/m.gguf#md5=1", "hf://o/r/m.gguf#sha256=12", "https://h/m.gguf#sha256=", "file:", "file:/data/", "https://[::1/m.gguf",
        "hf:o/r/m.gguf", "http:h/m.gguf",
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ModelFileUnusable, match=r"hf://owner/repo/file\.gguf"):
        parse_source(text)


def test_secrets_are_not_shown() -> None:
    text = "https://user:hunter2@h:8443/a/m.gguf?X-Signature=s3cret"
    source = parse_source(text)
    assert source.shown == "https://h:8443/a/m.gguf"
    with pytest.raises(ModelFileUnusable) as caught:
        parse_source(text.replace("m.gguf", "m.bin"))
    assert "hunter2" not in str(caught.value) + source.key
    assert "s3cret" not in str(caught.value) + source.key


def test_a_split_model_is_all_of_its_files() -> None:
    parts = parse_source("hf://o/r/q4/m-00002-of-00003.gguf@v1").parts()
    assert [part.shown for part in parts] == [f"hf://o/r/q4/m-0000{number}-of-00003.gguf@v1" for number in (1, 2, 3)]
    parts = parse_source("https://h/q4/m-00001-of-00002.gguf?k=1").parts()
    assert [part.where for part in parts] == [f"https://h/q4/m-0000{number}-of-00002.gguf?k=1" for number in (1, 2)]
    with pytest.raises(ModelFileUnusable, match="99999 files"):
        parse_source("hf://o/r/m-00001-of-99999.gguf").parts()


def test_the_key_tells_sources_apart() -> None:
    texts = [
        "hf://o/r/m.gguf",
        "hf://o/r/m.gguf@v1",
        "hf://o/r/n.gguf",
        "hf://o/s/m.gguf",
        "https://h/m.gguf",
        "https://h/m.gguf?a=1",
    ]
    assert len({parse_source(text).key for text in texts}) == len(texts)
    assert parse_source("hf://o/r/m.gguf@main").key == parse_source(f"hf://o/r/m.gguf#sha256={DIGEST}").key
