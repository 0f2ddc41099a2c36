"""
Configuration: a dataclass, a .toml file and the command line make one checked config.

    python train.py config/laptop.toml --max_steps=500 --resume

Values come from the dataclass's defaults, then from the file, then from the command line. A file
holds a section for each script that it says something about, so that one preset is a whole
experiment:

    [prepare]
    vocab_size = 8192
    [train]
    n_layer = 6

An unknown key or a wrong type ends the run with one line that says which.
"""
import difflib
import hashlib
import inspect
import json
import os
import re
import sys
import tomllib
from dataclasses import fields, replace

SECTIONS = ("prepare", "train", "instruct", "sample")
TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text",
         list[str]: "a list of text"}


def from_command_line(cls, section, argv):
    """cls: a dataclass with a default for each field; section: the name of the script;
    argv: the arguments, at most one .toml file and any number of --key=value, where a bare --key
    is short for --key=true -> a `cls`"""
    if "--help" in argv or "-h" in argv:
        print(help_text(cls, section))
        sys.exit()
    config = cls()
    for path in [a for a in argv if not a.startswith("--")]:
        config = update(config, read_section(path, section), f"{path} [{section}]")
    types = {f.name: f.type for f in fields(cls)}
    given = {}
    for arg in [a for a in argv if a.startswith("--")]:
        key, equals, value = arg[2:].partition("=")
        if not equals and types.get(key, bool) is not bool:
            raise ValueError(f"{arg}: write --{key}=VALUE")
        given[key] = value if equals else "true"
    return update(config, given, "command line")


def read_section(path, section):
    """-> {key: value} of one section of a preset"""
    if not path.endswith(".toml"):
        raise ValueError(f"{path}: what is this? Give a .toml preset, or --key=VALUE")
    with open(path, "rb") as f:
        try:
            file = tomllib.load(f)
        except tomllib.TOMLDecodeError as e:
            raise ValueError(f"{path}: not TOML: {e}") from None
    for key, value in file.items():
        if key not in SECTIONS or not isinstance(value, dict):
            raise ValueError(f"{path}: {key} is not a section: the keys of a script go under one "
                             f"of {', '.join(f'[{s}]' for s in SECTIONS)}")
    return file.get(section, {})


def update(config, values, source):
    """-> `config` with `values` in it, which come from `source` and are text where that is the
    command line. ValueError for a key or a type that the dataclass does not have."""
    types = {f.name: f.type for f in fields(config)}
    checked = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the keys"
            raise ValueError(f"{source}: unknown key {key}: {hint}")
        try:
            checked[key] = convert(value, types[key])
        except (ValueError, TypeError):
            raise ValueError(f"{source}: {key}={value!r} is not {TYPES[types[key]]}") from None
    return replace(config, **checked)


def convert(value, kind):
    """A value of a .toml file, or the text of one -> the same as `kind`: bool, int, float, str or
    list[str]; ValueError where it is none"""
    if kind == list[str]:
        items = [v for v in value.split(",") if v] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(v, str) for v in items):
            return items
    elif kind is bool:
        if value in (True, "true", "True"):
            return True
        if value in (False, "false", "False"):
            return False
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float) and not isinstance(value, bool):
        number = kind(value)
        if isinstance(value, str) or number == value:
            return number
    raise ValueError


def help_text(cls, section):
    """The fields of a config with their defaults and the comments beside them in the source."""
    notes = {}
    for base in reversed(cls.__mro__[:-1]):
        notes |= dict(re.findall(r"^    (\w+):.*?  # (.*)$", inspect.getsource(base), re.MULTILINE))
    lines = [f"python {section}.py [config/NAME.toml] [--key=value ...]", ""]
    for f in fields(cls):
        value = getattr(cls(), f.name)
        shown = ",".join(value) if isinstance(value, list) else value
        lines.append(f"--{f.name}={shown}\n        {notes.get(f.name, '')}")
    return "\n".join(lines)


def write_json(path, value):
    """Write a resolved config, or anything else that a script tells of itself, as JSON: the whole
    file or nothing."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")
    os.replace(f"{path}.tmp", path)


def file_sha256(path):
    """-> the SHA-256 of a file, in hexadecimal: by it data and models know their tokenizer"""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def run(main):
    """Run a script's main(argv). What the user can mend (a file that is not there, a value that
    does not fit: OSError and ValueError) is said in one line, with exit status 1; anything else is
    a defect and keeps its traceback. Set DEBUG=1 for tracebacks of both."""
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as e:
        if os.environ.get("DEBUG"):
            raise
        text = f"{e.filename}: {e.strerror}" if isinstance(e, OSError) and e.filename else str(e)
        sys.exit("error: " + " ".join(text.split()))
