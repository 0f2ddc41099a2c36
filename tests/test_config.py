"""Configuration: where values come from, and what is refused."""
import glob
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

import config
from instruct import InstructConfig
from prepare import PrepareConfig
from sample import SampleConfig
from train import TrainConfig

CONFIGS = {"prepare": PrepareConfig, "train": TrainConfig, "instruct": InstructConfig,
           "sample": SampleConfig}


@dataclass
class Example:
    steps: int = 10             # how many
    rate: float = 0.1           # how fast
    name: str = "a"             # what it is called
    loud: bool = False          # whether it speaks
    batch_size: int = 1         # rows
    dropout: float = 0.0        # share
    files: tuple = ()           # what it reads


def load(tmp_path, text, *args, encoding="utf-8"):
    path = tmp_path / "x.toml"
    path.write_text(text, encoding=encoding)
    return config.from_command_line(Example, "train", [str(path), *args])


def test_default_then_file_then_command_line(tmp_path):
    cfg = load(tmp_path, '[train]\nsteps = 20\nrate = 1\nname = "b"\nfiles = ["p", "q"]\n[sample]\nx = 1',
               "--steps=30", "--loud=true", "--name=c=d")
    assert cfg == Example(steps=30, rate=1.0, name="c=d", loud=True, files=("p", "q"))
    assert config.from_command_line(Example, "train", ["--loud"]).loud
    assert config.from_command_line(Example, "train", ["--files= a,b,, c"]).files == ("a", "b", "c")
    assert config.from_command_line(Example, "train", ["--files=a", "--files=b,c"]).files == \
        ("a", "b", "c")


def test_byte_order_mark(tmp_path):
    assert load(tmp_path, "[train]\nsteps = 20", encoding="utf-8-sig").steps == 20


@pytest.mark.parametrize("arg,message", [
    ("--step=3", "unknown key step: did you mean steps?"),
    ("--bs=3", "unknown key bs: did you mean batch_size?"),
    ("--xyz=3", "unknown key xyz: --help lists the keys"),
    ("--steps=x", "steps='x' is not a whole number"),
    ("--steps=1.5", "not a whole number"),
    ("--rate=fast", "not a number"),
    ("--loud=maybe", "not true or false"),
    ("--steps", "write --steps=VALUE, with an equals sign"),
    ("--steps 5", "write --steps=VALUE"),
    ("steps", "steps: neither a .toml preset nor --key=VALUE"),
    ("config/laptop", "config/laptop: neither a .toml preset nor --key=VALUE: did you mean config/laptop.toml?"),
    ("config/lapto.toml", "did you mean config/laptop.toml?"),
    ("--batch_size=0", "batch_size=0 is too small"),
    ("--rate=-1", "rate=-1.0 is too small"),
    ("--rate=nan", "rate=nan is too small"),
    ("--rate=inf", "rate=inf is too large"),
    ("--steps=1e400", "not a whole number"),
    ("--dropout=1.5", "dropout=1.5 is too large"),
    ("--rate=1 --rate=2", "--rate is given twice, as 1 and as 2"),
])
def test_refused_on_the_command_line(arg, message, monkeypatch):
    monkeypatch.chdir(os.path.dirname(os.path.dirname(config.__file__)))
    with pytest.raises(ValueError) as e:
        config.from_command_line(Example, "train", arg.split())
    assert message in str(e.value)


@pytest.mark.parametrize("text,message", [
    ("[train]\nstepz = 3", "unknown key stepz"),
    ("[train]\nsteps = true", "not a whole number"),
    ("[train]\nsteps = 1.5", "not a whole number"),
    ("[train]\nname = 3", "not text"),
    ("[train]\nfiles = [1]", "not a list of text"),
    ("steps = 3", "steps is not a section"),
    ("[trian]\nsteps = 3", "trian is not a section"),
    ("[train\nsteps", "not TOML"),
])
def test_refused_in_a_file(tmp_path, text, message):
    with pytest.raises(ValueError) as e:
        load(tmp_path, text)
    assert message in str(e.value) and "x.toml" in str(e.value)


@pytest.mark.parametrize("script", CONFIGS)
def test_presets_are_valid(script):
    presets = glob.glob(os.path.join(os.path.dirname(config.__file__), "*.toml"))
    assert len(presets) >= 3
    for preset in presets:
        config.from_command_line(CONFIGS[script], script, [preset])


@pytest.mark.parametrize("script", CONFIGS)
def test_toy_preset_is_the_defaults(script):
    """`python train.py` and `python train.py config/toy.toml` are the same run."""
    toy = os.path.join(os.path.dirname(config.__file__), "toy.toml")
    assert config.from_command_line(CONFIGS[script], script, [toy]) == CONFIGS[script]()


@pytest.mark.parametrize("script", CONFIGS)
def test_help_explains_every_field(script, capsys, monkeypatch):
    """A line each, and no key twice: the scripts inherit none that they state themselves."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[script])
    with pytest.raises(SystemExit):
        config.from_command_line(CONFIGS[script], script, ["--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(inspect.getdoc(sys.modules[CONFIGS[script].__module__]))
    keys = re.findall(r"^    (\w+): \w+ = .*  # .+$", printed.partition(f"in a preset's section [{script}]:\n")[2], re.MULTILINE)
    assert sorted(keys) == sorted(CONFIGS[script].__dataclass_fields__)


@pytest.mark.parametrize("command", ["bench.tuning", "tools.kmers", "tools.cnn"])
def test_help_is_of_the_script_that_runs(command):
    """bench.tuning has the keys of instruct.py, and tools.cnn the arguments of tools.kmers."""
    done = subprocess.run([sys.executable, "-m", command, "--help"], capture_output=True, text=True,
                          cwd=os.path.dirname(os.path.dirname(config.__file__)))
    assert f"\n    python -m {command} " in done.stdout


# -- paths

def test_home_folders(monkeypatch, tmp_path):
    """A shell expands ~ at the start of a word alone, not after --key=."""
    monkeypatch.setenv("HOME", "/home/me")
    assert load(tmp_path, "[train]", "--name=~/x").name == "/home/me/x"
    assert load(tmp_path, '[train]\nname = "~/x"\nfiles = ["~/a", "b~"]').files == ("/home/me/a", "b~")
    assert load(tmp_path, '[train]\nname = "~/x"').name == "/home/me/x"


# -- what to run next

def test_next_command_of_the_defaults_is_bare():
    keys = {"init_from": "out/toy", "out_dir": "out/toy-instruct", "tasks": ("as the preset says",)}
    assert config.next_command("instruct", ["--max_steps=5"], **keys) == "python instruct.py"


def test_next_command_keeps_the_preset():
    argv = ["config/laptop.toml", "--max_steps=5"]
    assert config.next_command("instruct", argv, init_from="out/laptop", out_dir="out/x") == \
        "python instruct.py config/laptop.toml"
    assert config.next_command("instruct", argv, init_from="out/mine", out_dir="out/laptop-instruct",
                               tasks=("a", "b")) == \
        "python instruct.py config/laptop.toml --init_from=out/mine --tasks=a,b"


def test_next_command_is_quoted(tmp_path):
    preset = tmp_path / "my preset.toml"
    preset.write_text("[train]\nn_layer = 2")
    command = config.next_command("train", [str(preset)], data_dir="data/it's mine", epochs=0)
    assert shlex.split(command) == ["python", "train.py", str(preset), "--data_dir=data/it's mine", "--epochs=0"]


# -- files

def test_a_file_is_whole_or_the_old_one(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), config.replacing(path) as temporary:
        open(temporary, "w").write("half")
        1 / 0
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]
    with config.replacing(path) as temporary:
        open(temporary, "w").write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["x"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("there", "not yet"):
        os.symlink(f"folder/{name}", tmp_path / name)
    (tmp_path / "folder/there").write_text("old")
    for name in ("there", "not yet"):
        config.write_json(tmp_path / name, "new")
        assert os.readlink(tmp_path / name) == f"folder/{name}"
        assert (tmp_path / "folder" / name).read_text() == '"new"\n'


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_pipe_is_written_to(tmp_path):
    """As is any device: none becomes a regular file."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as thread:
        content = thread.submit((tmp_path / "pipe").read_text)
        config.write_json(tmp_path / "pipe", "new")
        assert content.result(timeout=10) == '"new"\n'
    assert os.listdir(tmp_path) == ["pipe"] and not os.path.isfile(tmp_path / "pipe")


def test_sigterm_cleans_up(tmp_path):
    """It ends a script as sys.exit() would: no folder of gigabytes stays for ever."""
    script = tmp_path / "script.py"
    script.write_text("import config, tempfile, time\n"
                      "def main(argv):\n"
                      f"    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n"
                      "        print('ready', flush=True)\n        time.sleep(100)\n"
                      "config.run(main)\n")
    root = os.path.dirname(os.path.dirname(config.__file__))
    process = subprocess.Popen([sys.executable, str(script)], text=True, stdout=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": root})
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == ["script.py"]
