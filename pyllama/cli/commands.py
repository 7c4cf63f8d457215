"""The table of commands.  Each is imported when it runs: the modules of all take 8 to 15 MB more, and twice the time.

The help pages of all commands and the completion import them all: a signature says the flags, a docstring the rest.
"""
import importlib
from collections.abc import Callable, Iterator, Mapping


class Commands(Mapping[str, Callable]):
    """{name: function} of a table {name: "module.function"}, whose module is imported when its function is read."""

    def __init__(self, places: Mapping[str, str]):
        self.places = places

    def __getitem__(self, name: str) -> Callable:
        module, function = self.places[name].split(".")
        return getattr(importlib.import_module(f"pyllama.cli.{module}"), function)

    def __contains__(self, name: object) -> bool:
        return name in self.places                          # Mapping's own would import the command

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


SECTIONS = {
    "train a model": Commands({
        "train": "text.train", "resume": "text.resume", "finetune": "tasks.finetune", "distill": "distill.distill"}),
    "use a trained model": Commands({
        "generate": "generate.generate", "chat": "chat.chat", "predict": "tasks.predict",
        "evaluate": "evaluate.evaluate", "extract": "graph.extract", "graph": "graph.graph",
        "quantize": "quantize.quantize", "prune": "prune.prune", "factorize": "factorize.factorize",
        "merge": "merge.merge"}),
    "show information": Commands({
        "inspect": "contents.inspect", "models": "overview.models", "tasks": "overview.tasks", "plot": "plot.plot",
        "report": "report.report", "env": "inspect.env", "completion": "completion.completion"}),
    "study the ops": Commands({
        "ops": "inspect.ops", "derive": "derive.derive", "explain": "explain.explain", "plan": "plan.plan",
        "check": "checking.check", "verify": "checking.verify", "export-vectors": "checking.export_vectors",
        "score": "score.score", "dojo": "dojo.dojo"}),
}
COMMANDS = Commands({name: place for section in SECTIONS.values() for name, place in section.places.items()})
ALIASES = {"eval": "evaluate"}
