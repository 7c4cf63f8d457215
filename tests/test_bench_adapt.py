"""bench/adapt.py: its commands are ones that pyllama takes, and PEFT has a row.  Nothing is trained."""
import json
import sys

from bench import adapt
from pyllama.cli.main import command_named
from pyllama.cli.parsing import parse
from pyllama.text.tokenizer import Tokenizer

FILES = ("fixtures/stories260K/stories260K.bin", "fixtures/stories260K/tok512.bin", "data/tinyshakespeare/input.txt",
         f"data/quickstart/{adapt.TRAIN}", f"data/quickstart/{adapt.TEST}")


def test_every_way_is_a_command_that_pyllama_takes(monkeypatch, tmp_path, capsys):
    """Otherwise a flag with another name, or a pattern that does not fit, would stop the table after half an hour."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    commands, theirs = [], []

    def row(part, way, command, run):
        commands.append([*map(str, command), "--out_dir", str(run)])
        return {"part": part, "way": way}

    monkeypatch.setattr(adapt, "row", row)
    monkeypatch.setattr(adapt, "weights", lambda environment: tmp_path)
    monkeypatch.setattr(adapt, "theirs", lambda *arguments: theirs.append(arguments) or {"accuracy": 0.5})
    monkeypatch.setattr(sys, "argv", ["adapt", "--json", "--parts", "stories", "scratch", "sentences", "--data",
                                      f"{tmp_path}/data", "--fixtures", f"{tmp_path}/fixtures", "--peers-python",
                                      sys.executable])
    assert adapt.main() == 0
    ways = [json.loads(line)["way"] for line in capsys.readouterr().out.splitlines()]
    assert ways == [*adapt.ADAPTED, *adapt.SCRATCH, *adapt.SENTENCES, "LoRA, PEFT"]
    for name, *words in commands:
        _, command = command_named(name)
        _, named = parse(command, words, name)
        if "shape" in named and "init_from" not in named:
            assert named["shape"].config(named["settings"].block_size, Tokenizer.bytes()).hidden_size == 128
    ours = next(words for words in commands if words[0] == "finetune")
    assert ours[len(ours) - ours[::-1].index("--max_steps")] == str(theirs[0][-1])         # both take as many steps
