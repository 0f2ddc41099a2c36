"""
tokenizer.json, the file of the `tokenizers` library: how ours is written, and how those of
other programs are read. Not needed to understand bpe.py.

What would give other ids here than in the library is refused.
"""
import json

import regex

# GPT-2's own split, which a tokenizer.json names only as "use_regex".
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def write_settings(vocab, merges, pattern, specials):
    """What a Tokenizer consists of -> the content of a tokenizer.json"""
    name = {i: token for token, i in vocab.items()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False}
    both = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
               "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[s], "content": s} | special for s in specials],
        "normalizer": None,
        "pre_tokenizer": byte_level if pattern is None else both,
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[name[left], name[right]] for left, right, _ in merges],
        },
    }


# ------------------------------------------------------------------------------------------------
# Reading

# How a message names a type
KINDS = {dict: "an object", list: "a list", str: "text"}

# The values or types with which a setting is read; None: it may also be absent.
FILE = {"model": [dict], "normalizer": [None], "truncation": [None], "padding": [None]}
MODEL = {"vocab": [dict], "merges": [list], "type": ["BPE", None], "dropout": [None, 0],
         "unk_token": [None], "continuing_subword_prefix": [None, ""],
         "end_of_word_suffix": [None, ""], "byte_fallback": [False, None],
         "ignore_merges": [False, None]}
SPLIT = {"pattern": [dict], "behavior": ["Isolated", None], "invert": [False, None]}

# A pattern that Oniguruma, the library's engine, and Python's `regex` read alike: without ^, $,
# \w, \b, \h, sets within sets, most (? groups
ESCAPE = r"\\(?:[pP]\{\w+\}|[sSdDrnt]|\W)"
COMMON_SYNTAX = regex.compile(
    rf"(?:{ESCAPE}|\[\^?(?:{ESCAPE}|[^\\\[\]&]|&(?!&))+\]|\(\?(?:i?:|>|<?[=!])|\((?!\?)"
    r"|\{\d*,?\d*\}(?![+?])|[^\\\[\](){}^$]|\))*")


def check(settings, where, supported):
    """ValueError for a setting with which the library would give other ids than we do"""
    for key, choices in supported.items():
        value = settings.get(key) if isinstance(settings, dict) else None
        if value not in choices and type(value) not in choices:
            names = [KINDS.get(choice) or json.dumps(choice) for choice in choices]
            raise ValueError(f"{where}{key} is {json.dumps(value):.60}; supported: "
                             f"{' or '.join(names)}")


def read_settings(file, byte_names):
    """The content of a tokenizer.json -> (vocab, merges, pattern, specials), as of a Tokenizer.
    ValueError (or TypeError, KeyError, AttributeError) for what is not supported.
    byte_names: {GPT-2's name of a byte: the byte}"""
    check(file, "", FILE)
    check(file["model"], "model.", MODEL)
    check(file.get("post_processor") or {"type": None}, "post_processor.",
          {"type": ["ByteLevel", None]})
    vocab, specials = read_vocab({"added_tokens": []} | file, byte_names)
    merges = read_merges(file["model"]["merges"], vocab, specials, byte_names)
    return vocab, merges, read_split(file.get("pre_tokenizer") or {"type": "null"}), specials


def read_vocab(file, byte_names):
    """-> {token: id}, special tokens"""
    check(file, "", {"added_tokens": [list]})
    vocab, specials = dict(file["model"]["vocab"]), []
    for n, token in enumerate(file["added_tokens"]):
        check(token, f"added_tokens[{n}].", {"content": [str], "special": [True]})
        specials.append(token["content"])
        if vocab.setdefault(token["content"], token["id"]) != token["id"]:
            raise ValueError(f"special token {token['content']!r} has two ids")

    # One id is one token, spelled in the names of its bytes.
    owner = {}
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < 1 << 24:
            raise ValueError(f"the id of token {token!r} is {json.dumps(i):.60}")
        if owner.setdefault(i, token) != token:
            raise ValueError(f"tokens {owner[i]!r} and {token!r} have the same id, {i}")
        if token not in specials and not set(token) <= byte_names.keys():
            raise ValueError(f"token {token!r} is not spelled in GPT-2's names of bytes")
    return vocab, tuple(specials)


def read_merges(pairs, vocab, specials, byte_names):
    """-> [(left, right, new), ...] as ids"""
    # Each merge makes a new token of two earlier ones, which is what fast encoding relies on.
    merges, known = [], vocab.keys() & byte_names.keys()
    for pair in pairs:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        new = left + right
        if not {left, right} <= known or new in known or new not in vocab:
            raise ValueError(f"merge {len(merges) + 1}, {left!r} and {right!r}, does not make a "
                             "new token of the vocabulary out of two earlier ones")
        known.add(new)
        merges.append((vocab[left], vocab[right], vocab[new]))
    if known & set(specials):
        raise ValueError(f"special token {min(known & set(specials))!r} is a token of text too")
    return merges


def read_split(pre_tokenizer):
    """-> the regular expression of a pre-tokenizer, or None for no split"""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    types = " + ".join(step["type"] for step in steps)
    if types not in ("ByteLevel", "Split + ByteLevel"):
        raise ValueError(f"pre_tokenizer is {types}; supported: ByteLevel or Split + ByteLevel")

    # ByteLevel splits as GPT-2 does, unless told otherwise. After a Split it must be told so.
    has_split = len(steps) == 2
    byte_level = {"use_regex": True} | steps[-1]
    check(byte_level, "ByteLevel.", {"add_prefix_space": [False, None],
                                     "use_regex": [False] if has_split else [False, True]})
    if not has_split:
        return GPT2_PATTERN if byte_level["use_regex"] else None

    check(steps[0], "Split.", SPLIT)
    pattern = steps[0]["pattern"].get("Regex")
    if not isinstance(pattern, str) or not COMMON_SYNTAX.fullmatch(pattern):
        raise ValueError(f"Split.pattern {json.dumps(steps[0]['pattern'])} is not a Regex that "
                         "Python's `regex` and the library read alike")
    return pattern
