"""
Configuration: a dataclass, a .toml file and the command line make one checked config.

    python train.py config/laptop.toml --max_steps=500 --resume

Values come from the dataclass's defaults, then from the file, then from the command
line. A file has a section per script, so that one preset is a whole experiment:

    [prepare]
    vocab_size = 8192
    [train]
    n_layer = 6

An unknown key, a wrong type or an impossible value ends the run with one line that says
which.
"""
import difflib
import glob
import hashlib
import inspect
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import tomllib
from contextlib import contextmanager
from dataclasses import fields, replace

try:
    import fcntl
except ImportError:     # on Windows
    fcntl = None

TOY = os.path.join(os.path.dirname(__file__), "toy.toml")
SECTIONS = ("prepare", "train", "instruct", "sample")
TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text",
         tuple: "a list of text"}

# Numbers are zero or more; these are more than zero, and those at most 1.
POSITIVE = ("batch_size gradient_accumulation_steps n_layer n_head n_embd block_size "
            "vocab_size eval_interval log_interval learning_rate tokenizer_mb "
            "val_fraction num_samples max_new_tokens").split()
AT_MOST_1 = "dropout val_fraction balance undo_merges".split()
# These texts are one of a few.
CHOICES = {"optimizer": ("muon", "adamw"), "compile": ("auto", "yes", "no"),
           "dtype": ("auto", "float32", "bfloat16", "float16")}


def from_command_line(cls, section, argv):
    """Read a script's configuration; --help prints its keys and ends the script.

    cls: a dataclass with a default for each field
    section: the name of the script
    argv: presets, and --key=value in any number; --key alone means --key=true
    -> a `cls`. ValueError for what cannot be understood
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(cls, section))
        sys.exit()

    # what the command line says
    types = {f.name: f.type for f in fields(cls)}
    given = {}
    for arg in [a for a in argv if a.startswith("-")]:
        key, equals, value = arg.lstrip("-").partition("=")
        require(equals or types.get(key, bool) is bool,
                f"{arg}: write --{key}=VALUE, with an equals sign")
        value = value if equals else "true"
        if key in given:
            require(types.get(key) is tuple, f"--{key} is given twice, as {given[key]} "
                    f"and as {value}: give it once")
            value = f"{given[key]},{value}"
        given[key] = value

    # comes after what the preset says
    config = cls()
    for path in [a for a in argv if not a.startswith("-")]:
        config = update(config, read_section(path, section), f"{path} [{section}]")
    return update(config, given, "command line")


def read_section(path, section):
    """-> {key: value} of one section of a preset"""
    if not path.endswith(".toml") or not os.path.exists(path):
        hint = did_you_mean(path, glob.glob("config/*.toml"))
        raise ValueError(f"{path}: neither a .toml preset nor --key=VALUE{hint}")
    with open(path, encoding="utf-8-sig") as f:
        try:
            file = tomllib.loads(f.read())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ValueError(f"{path}: not TOML: {e}") from None
    for key, value in file.items():
        require(key in SECTIONS and isinstance(value, dict),
                f"{path}: {key} is not a section: keys go under one of "
                f"{', '.join(f'[{name}]' for name in SECTIONS)}")
    return file.get(section, {})


def update(config, values, source):
    """-> `config` with other values, once they are checked against the dataclass's types

    values: {key: a text or a value of a .toml file}
    source: where they come from, for the ValueError
    """
    types = {f.name: f.type for f in fields(config)}
    checked = {}
    for key, value in values.items():
        if key not in types:
            hint = did_you_mean(key, types) or ": --help lists the keys"
            for script in SECTIONS:
                if key in read_section(TOY, script):
                    hint = f": it is a key of {script}.py"
            raise ValueError(f"{source}: unknown key {key}{hint}")
        try:
            value = checked[key] = convert(value, types[key])
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{source}: {key}={value!r} is not "
                             f"{TYPES[types[key]]}") from None
        if types[key] in (int, float):
            require(value > 0 or value == 0 and key not in POSITIVE,
                    f"{source}: {key}={value} is too small")
            require(value <= (1 if key in AT_MOST_1 else sys.float_info.max),
                    f"{source}: {key}={value} is too large")
        if key in CHOICES:
            require(value in CHOICES[key], f"{source}: {key}={value} is not one of "
                    f"{', '.join(CHOICES[key])}")
    return replace(config, **checked)


def did_you_mean(name, names):
    """-> the end of a message about a misspelled or shortened name: which of `names` it
    is like; "" if it is like none

    did_you_mean("max_step", ["max_steps", "dtype"]) -> ": did you mean max_steps?"
    did_you_mean("lr", ["learning_rate", "dtype"]) -> ": did you mean learning_rate?"
    """
    initials = {"".join(word[:1] for word in n.split("_")): n for n in names}
    similar = difflib.get_close_matches(name, names, n=1)
    near = similar[0] if similar else initials.get(name)
    return f": did you mean {near}?" if near else ""


def convert(value, kind):
    """-> a value as a `kind`, one of bool, int, float, str, tuple (of str)

    value: as a .toml file has it, or its text, in which commas separate a tuple's items.
    A text that begins with ~ names a file in a home folder.
    """
    if kind is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(v, str) for v in items):
            return tuple(os.path.expanduser(v.strip()) for v in items if v.strip())
    elif kind is bool:
        if value in (True, "true", "True"):
            return True
        if value in (False, "false", "False"):
            return False
    elif kind is str and isinstance(value, str):
        return os.path.expanduser(value)
    elif kind in (int, float) and not isinstance(value, bool):
        number = kind(value)
        if isinstance(value, str) or number == value:
            return number
    raise ValueError


def help_text(cls, section):
    """-> the docstring of the script that runs, then its dataclass and those that it
    inherits from: each key with its type, its default and its meaning"""
    lines = [inspect.getdoc(sys.modules["__main__"]),
             f"\nKeys, as --key=value or in a preset's section [{section}]:\n"]
    for base in cls.__mro__[:-1]:
        # without "@dataclass" and "class ..."
        lines += inspect.getsource(base).rstrip().split("\n")[2:]
    return "\n".join(lines)


def next_command(script, argv, **keys):
    """-> the command line of what to run next, quoted for a shell

    script: its name, such as "instruct"
    argv: this run's arguments, whose preset the next script is given too
    keys: what the next script must know. A key is left out where the preset has the same
        value (without a preset toy.toml, a copy of the defaults). All are left out where
        the preset has the first key's: then the preset is being followed.
    """
    presets = [arg for arg in argv if not arg.startswith("-")]
    section = {}
    for path in presets or [TOY]:
        section |= read_section(path, script)
    options = {key: as_text(value) for key, value in keys.items()
               if as_text(value) != as_text(section.get(key))}
    if next(iter(keys)) not in options:
        options = {}
    return shlex.join(["python", f"{script}.py", *presets,
                       *(f"--{key}={value}" for key, value in options.items())])


def as_text(value):
    """-> a value as it is written on the command line"""
    return ",".join(value) if isinstance(value, (list, tuple)) else str(value)


def require(condition, message):
    if not condition:
        raise ValueError(message)


@contextmanager
def replacing(path):
    """-> the path of a temporary file to write. It replaces the file `path` when all has
    gone well, so that this file is always whole, the old one or the new one.

    A link is followed. A device or a pipe is written to directly.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        yield path
        return
    temporary = f"{path}.tmp"
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())        # on the disk before it replaces the old one
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def check_output(path, inputs=()):
    """Find out before long work whether a file can be written after it.

    inputs: files that are read meanwhile
    ValueError if `path` is one of them or a folder; OSError if its folder, or the one in
    which that will be made, cannot be written to.
    """
    require(not os.path.isdir(path), f"{path}: a folder: name a file in it")
    if os.path.exists(path):
        require(not any(os.path.exists(p) and os.path.samefile(p, path) for p in inputs),
                f"{path}: the output is the input: give another output")
        if not os.path.isfile(path):        # a device or a pipe
            return
    folder = os.path.dirname(os.path.realpath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise OSError(f"{path}: cannot be written: {e.strerror}") from None


@contextmanager
def locked(folder):
    """Within, a folder belongs to this process. ValueError if it belongs to another one.

    The lock ends with the process, even if that is killed. Windows and some network
    drives have no locks; there nothing is checked.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another run is writing to it: wait for its "
                             "end, or give another folder") from None
        except OSError:         # no locks here
            pass
        yield
    finally:
        os.close(descriptor)


def parse_json(text):
    """-> the value of a JSON text. ValueError if it is broken"""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets within brackets without end") from None


def read_json(path):
    with open(path, encoding="utf-8") as f:
        return parse_json(f.read())


def write_json(path, value):
    """Write a config, scores or any other JSON, atomically."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def copy_file(source, target):
    """Copy a file, atomically."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def file_sha256(path):
    """-> SHA-256 of a file, in hexadecimal. Data and models store that of their
    tokenizer to identify it."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def run(main):
    """Run a script's main(argv). User errors (OSError, ValueError) and Ctrl-C print one
    line and exit with status 1. Anything else is a bug and keeps its traceback. DEBUG=1
    shows all tracebacks."""
    # ends the script as sys.exit() does, so that temporary files are removed
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    # names of files may hold what cannot be printed
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:     # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as e:
        if os.environ.get("DEBUG"):
            raise
        text = str(e)
        if isinstance(e, OSError) and e.filename:
            text = f"{e.filename}: {e.strerror}"
        sys.exit("error: " + " ".join(text.split())[:1000])
    except KeyboardInterrupt:
        sys.exit("\nstopped")
