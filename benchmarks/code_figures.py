"""Figures of the code itself: python -m benchmarks.code_figures [--root=DIR]

Modules, import cycles, sizes of files and functions, parameters, long lines, README and evaluation, as JSON on the last
line; `--root` is another checkout, to compare two versions.
"""

import argparse
import ast
import json
import pathlib
import statistics


def functions(trees: list[ast.Module]) -> list[ast.FunctionDef]:
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def parameters(function: ast.FunctionDef) -> int:
    """The parameters of a function but self and cls."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def imports(root: pathlib.Path, modules: dict[str, pathlib.Path]) -> dict[str, set[str]]:
    """{module: modules of the package that it imports, lazily too}."""
    graph = {}
    for module, file in modules.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = [f"{node.module}.{name.name}" for name in node.names]
                names |= {name if name in modules else node.module for name in full}
        graph[module] = (names & set(modules)) - {module}
    return graph


def in_cycles(graph: dict[str, set[str]]) -> int:
    """The number of modules that import themselves by way of others."""

    def reachable(start: str) -> set[str]:
        reached: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += graph[name]
        return reached

    return sum(name in reachable(name) for name in graph)


def figures(root: pathlib.Path) -> dict:
    package = root / "dreamjax"
    files = [file for file in sorted(package.rglob("*.py")) if "experiments" not in file.relative_to(package).parts]
    dotted = {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    texts = [file.read_text(encoding="utf-8") for file in files]
    lengths = [text.count("\n") for text in texts if text]
    bodies = functions([ast.parse(text) for text in texts])
    sizes = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in bodies]
    return {
        "modules": len(files),
        "modules_at_top": len(list(package.glob("*.py"))),
        "modules_in_import_cycles": in_cycles(imports(root, dotted)),
        "file_lines_median": statistics.median(lengths),
        "file_lines_longest": max(lengths),
        "function_lines_median": statistics.median(sizes),
        "function_lines_longest": max(sizes),
        "functions_over_50_lines": sum(size > 50 for size in sizes),
        "functions_over_6_parameters": sum(parameters(node) > 6 for node in bodies),
        "parameters_mean": round(statistics.mean(map(parameters, bodies)), 2),
        "lines_over_120": sum(len(line) > 120 for text in texts for line in text.splitlines()),
        "lines": sum(lengths),
        "readme_lines": (root / "README.md").read_text(encoding="utf-8").count("\n"),
        "evaluation_lines": sum(file.read_text().count("\n") for file in (package / "evaluation").rglob("*.py")),
    }


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.code_figures", description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).parents[1], help="a checkout")
    counted = figures(parser.parse_args().root)
    for name, value in counted.items():
        print(f"{name:28s} {value:10,}")
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
