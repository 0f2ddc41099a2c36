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
import hashlib
import inspect
import json
import os
import shlex
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
AT_MOST_1 = "dropout val_fraction balance".split()


def from_command_line(cls, section, argv):
    """cls: a dataclass with a default for each field; section: the name of the script;
    argv: at most one .toml file and any number of --key=value, where --key alone means
    --key=true -> a `cls`"""
    if "--help" in argv or "-h" in argv:
        print(help_text(cls, section))
        sys.exit()
    # what the command line says
    types = {f.name: f.type for f in fields(cls)}
    given = {}
    for arg in [a for a in argv if a.startswith("-")]:
        key, equals, value = arg.lstrip("-").partition("=")
        if not equals and types.get(key, bool) is not bool:
            raise ValueError(f"{arg}: write --{key}=VALUE, with an equals sign")
        value = value if equals else "true"
        if key in given and types.get(key) is tuple:
            value = f"{given[key]},{value}"
        elif given.get(key, value) != value:
            raise ValueError(f"--{key} is given twice, as {given[key]} and as {value}: "
                             "give it once")
        given[key] = value

    # comes after what the preset says
    config = cls()
    for path in [a for a in argv if not a.startswith("-")]:
        config = update(config, read_section(path, section), f"{path} [{section}]")
    return update(config, given, "command line")


def read_section(path, section):
    """-> {key: value} of one section of a preset"""
    if not path.endswith(".toml"):
        raise ValueError(f"{path}: neither a .toml preset nor --key=VALUE")
    with open(path, "rb") as f:
        try:
            file = tomllib.loads(f.read().decode("utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ValueError(f"{path}: not TOML: {e}") from None
    for key, value in file.items():
        if key not in SECTIONS or not isinstance(value, dict):
            raise ValueError(f"{path}: {key} is not a section: keys go under one of "
                             f"{', '.join(f'[{s}]' for s in SECTIONS)}")
    return file.get(section, {})


def update(config, values, source):
    """-> `config` with `values`, texts or the values of a .toml file, checked against
    the types of the dataclass. source: where they come from, for the ValueError"""
    types = {f.name: f.type for f in fields(config)}
    checked = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the keys"
            raise ValueError(f"{source}: unknown key {key}: {hint}")
        try:
            value = checked[key] = convert(value, types[key])
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{source}: {key}={value!r} is not "
                             f"{TYPES[types[key]]}") from None
        if types[key] in (int, float):
            if not value >= 0 or value == 0 and key in POSITIVE:
                raise ValueError(f"{source}: {key}={value} is too small")
            if value > 1 and key in AT_MOST_1 or value == float("inf"):
                raise ValueError(f"{source}: {key}={value} is too large")
    return replace(config, **checked)


def convert(value, kind):
    """A value of a .toml file, or its text on the command line -> the same as a `kind`,
    one of bool, int, float, str, tuple (of str, in text separated by commas); ValueError
    if it is none. A text that begins with ~ names a file in a home folder."""
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
    """The script's docstring, then the lines of its dataclass and of those that it
    inherits from, as
    they are written: each key with its type, its default and what it means."""
    lines = [inspect.getdoc(sys.modules[cls.__module__]),
             f"\nKeys, as --key=value or in a preset's section [{section}]:\n"]
    for base in cls.__mro__[:-1]:
        # without "@dataclass" and "class ..."
        lines += inspect.getsource(base).rstrip().split("\n")[2:]
    return "\n".join(lines)


def next_command(script, argv, **keys):
    """-> the command line to run next, quoted for a shell

    script: its name, as "instruct"
    argv: of this run. Its preset is given to the next script too
    keys: what the next script must be told. Only what the preset (or, without one,
    toy.toml, a copy of the defaults) says otherwise is written out, and nothing if the
    first key is right as it is: then the preset is followed
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
    """A value of a config or of a .toml file, as the command line has it"""
    return ",".join(value) if isinstance(value, (list, tuple)) else str(value)


def require(condition, message):
    if not condition:
        raise ValueError(message)


@contextmanager
def replacing(path):
    """-> the path of a temporary file to write in place of the file `path`. It replaces
    that file when all has gone well, so that the file is always whole, old or new.

    A link is followed. What is no regular file, as a device or a pipe, is written to
    directly. For "-" the descriptor of standard output is given, which open() takes too.
    """
    if path == "-":
        sys.stdout.flush()
        yield os.dup(sys.stdout.fileno())
        return
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

    inputs: files that are read meanwhile. ValueError if `path` is one of them or a
    folder; OSError if its folder, or the one in which that will be made, cannot be
    written to
    """
    require(not os.path.isdir(path), f"{path}: a folder: name a file in it")
    if os.path.exists(path):
        require(not any(os.path.exists(p) and os.path.samefile(p, path) for p in inputs),
                f"{path}: the output is the input: give another output")
        if not os.path.isfile(path):        # a device or a pipe
            return
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise OSError(f"{path}: cannot be written: {e.strerror}") from None


@contextmanager
def locked(folder):
    """Within, a folder belongs to this process. ValueError if it belongs to another one.

    The lock ends with the process, even with a killed one. Where the system has no locks
    (on Windows, on some network drives) there is none.
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


def write_json(path, value):
    """Write a config, scores or any other JSON, atomically."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def file_sha256(path):
    """-> SHA-256 of a file, in hexadecimal. Data and models store that of their
    tokenizer to identify it."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def run(main):
    """Run a script's main(argv). User errors (OSError, ValueError) print one line and
    exit with status 1, and so does Ctrl-C; anything else is a bug and keeps its
    traceback. DEBUG=1 shows all tracebacks. SIGTERM ends the script as sys.exit() does,
    so that temporary files are removed."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
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
