"""Tokenizers are read from every stock layout of files, without running code of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import BertConfig, PreTrainedConfig, Qwen2Config, Qwen2Tokenizer, RobertaConfig

from stipule.errors import CheckpointError
from stipule.models.families.llada import LladaConfig
from stipule.models.loading import BUNDLED_FOLDER
from stipule.models.tokenizer_loading import load_tokenizer

BYTES = {letter: index for index, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "30"])}
SPECIAL = {"<|endoftext|>": len(BYTES), "<|im_end|>": len(BYTES) + 1, "<|mask|>": len(BYTES) + 2}
ROBERTA = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "h": 5, "s": 6, "hi": 7, "i": 8}
CODE = {"auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}
TINY = BUNDLED_FOLDER / "sudoku"
TINY_SETTINGS = json.loads((TINY / "tokenizer_config.json").read_text())


def write(folder: Path, settings: dict | None = None, **files: str) -> str:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    # Running this code is what must not happen.
    (folder / "tokenization_dream.py").write_text("raise SystemExit('code of the checkpoint was run')")
    return str(folder)


def dream_settings(**changes: object) -> dict:
    added = {str(i): {"content": text, "special": True, "normalized": False} for text, i in SPECIAL.items()}
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"}
    return {"tokenizer_class": "DreamTokenizer", "added_tokens_decoder": added, **names, **changes}


@pytest.mark.parametrize("extra", [CODE, {}, {**CODE, "tokenizer_class": None}])
def test_dreams_own_files_are_read_as_qwen2s_tokenizer(tmp_path: Path, extra: dict) -> None:
    merges = "#version: 0.2\n1 2\n3 0\n"
    path = write(tmp_path, dream_settings(**extra), vocab__json=json.dumps(BYTES), merges__txt=merges)
    tokenizer = load_tokenizer(path, Qwen2Config())
    text = "it's 12 + 30\n\n  naïve<|im_end|>"
    assert tokenizer(text)["input_ids"] == Qwen2Tokenizer.from_pretrained(path)(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (SPECIAL["<|endoftext|>"], SPECIAL["<|mask|>"])
    assert tokenizer.padding_side == "left"
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert load_tokenizer(str(tmp_path / "saved"), Qwen2Config())(text) == tokenizer(text)


@pytest.mark.parametrize("tokenizer_class", ["DreamTokenizer", "PreTrainedTokenizerFast", None])
def test_tokenizer_json_is_enough_whatever_class_is_named(tmp_path: Path, tokenizer_class: str | None) -> None:
    settings = {**TINY_SETTINGS, **CODE, "tokenizer_class": tokenizer_class}
    path = write(tmp_path, settings, tokenizer__json=(TINY / "tokenizer.json").read_text())
    tokenizer, original = load_tokenizer(path, LladaConfig()), load_tokenizer(str(TINY), LladaConfig())
    assert tokenizer("1234")["input_ids"] == original("1234")["input_ids"]
    assert tokenizer.mask_token_id == original.mask_token_id


@pytest.mark.parametrize(
    ("config", "files", "ids"),
    [
        (BertConfig(), {"vocab__txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhi\n##s"}, [2, 5, 6, 3]),
        (RobertaConfig(), {"vocab__json": json.dumps(ROBERTA), "merges__txt": "#version: 0.2\nh i\n"}, [0, 7, 6, 2]),
    ],
)
def test_files_of_masked_language_models_are_read(
    tmp_path: Path, config: PreTrainedConfig, files: dict, ids: list
) -> None:
    assert load_tokenizer(write(tmp_path, **files), config)("his")["input_ids"] == ids


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({}, None, "no vocabulary file"),
        ({"tokenizer__json": "{}"}, None, "(tokenizer.json)"),
        ({"vocab__json": "{}", "merges__txt": ""}, {"tokenizer_class": "Other", **CODE}, "needs its own code"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, files: dict, settings: dict | None, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(write(tmp_path, settings, **files), LladaConfig())
    assert message in str(caught.value) and "\n" not in str(caught.value)
