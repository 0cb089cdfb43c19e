"""Keys: where they come from, and that none goes where it does not belong or is shown."""

import json

import pytest

from eraseanything_core.concepts.credentials import CredentialError, check_name, find_key, origin, stored

KEY = "sk-secret-0123456789"
HOME = "https://llm.example/v1"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("ERASE_LLM_API_KEY", "ERASE_LLM_BASE_URL", "ERASE_LLM_API_KEY_LAB", "ERASE_LLM_BASE_URL_LAB"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path):
    entries = {"lab": {"key": f" {KEY}\n", "base_url": HOME}, "default": {"key": "other"}}
    (tmp_path / "credentials.json").write_text(json.dumps(entries))
    return tmp_path


def test_no_key_is_none(tmp_path):
    assert find_key("default", HOME, tmp_path) is None and not stored("default", tmp_path)


def test_a_key_of_the_file(file):
    assert find_key("lab", "https://LLM.example:443/v1/", file) == KEY and stored("lab", file)
    assert find_key("default", "https://api.openai.com/v1", file) == "other"
    assert find_key("unknown", HOME, file) is None


def test_the_environment_comes_first(file, monkeypatch):
    monkeypatch.setenv("ERASE_LLM_API_KEY", "first")
    assert find_key("default", "https://api.openai.com/v1", file) == "first"
    monkeypatch.setenv("ERASE_LLM_API_KEY_LAB", "second")
    monkeypatch.setenv("ERASE_LLM_BASE_URL_LAB", "http://127.0.0.1:9/v1")
    assert find_key("lab", "http://127.0.0.1:9/v1", file) == "second"


@pytest.mark.parametrize(
    "base_url",
    ["https://evil.example/v1", "http://llm.example/v1", "https://llm.example:444/v1", "https://llm.example.evil.com"],
)
def test_a_key_goes_only_to_the_address_that_it_was_stored_with(base_url, file):
    with pytest.raises(CredentialError, match="'lab' is for https://llm.example:443: it is not sent to") as caught:
        find_key("lab", base_url, file)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", ["", "../lab", "a b", KEY, "x" * 41])
def test_a_name_that_may_be_a_key_is_refused_and_not_repeated(name):
    with pytest.raises(CredentialError, match="must be a short name") as caught:
        check_name(name)
    assert not name or name not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"lab": "key"}', '{"lab": {"base_url": "x"}}', '{"lab": {"key": 3}}'])
def test_a_file_that_is_wrong_says_how_it_must_look(content, tmp_path):
    (tmp_path / "credentials.json").write_text(content)
    with pytest.raises(CredentialError, match=r'credentials.json must hold \{"lab": \{"key"'):
        find_key("lab", HOME, tmp_path)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk one", "schlüssel"])
def test_a_key_that_no_header_takes_is_refused_and_not_repeated(key, tmp_path):
    (tmp_path / "credentials.json").write_text(json.dumps({"lab": {"key": key, "base_url": HOME}}))
    with pytest.raises(CredentialError, match="the key of the credential 'lab' holds blanks") as caught:
        find_key("lab", HOME, tmp_path)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "base_url, reason",
    [
        ("api.openai.com/v1", "must be an address such as"),
        ("file:///etc/passwd", "must be an address such as"),
        ("https://user:secret@host/v1", "must hold no user, password or query"),
        ("https://host/v1?key=secret", "must hold no user, password or query"),
        ("http://host:port/v1", "must be an address such as"),
    ],
)
def test_an_address_is_one_of_http_without_secrets(base_url, reason):
    with pytest.raises(CredentialError, match=reason) as caught:
        origin(base_url)
    assert "secret" not in str(caught.value)
