"""`python -m devtools.packages`: writes `docs/packages.md`, a picture of each package and its imports, from the code.

An arrow is drawn where no longer way of arrows leads to the same place, so that the direction is what one sees.
"""

from collections.abc import Mapping, Set
from pathlib import Path

import grimp

PICTURE = Path(__file__).parents[1] / "docs" / "packages.md"
SHOWN = ("serving", "serving.engine", "serving.runtime", "serving.batch", "cluster")
"""Packages whose children are drawn; none of them has a circle, which `lint-imports` sees to."""
HEAD = """# Packages

Who imports whom. `python -m devtools.packages` writes this page; `lint-imports` holds the code to the contracts in
`pyproject.toml`, which are stricter: one for each package, and no module outside of them.
"""

Arrows = Mapping[str, Set[str]]
"""Package -> those that it imports."""


def page() -> str:
    """The page, as the code is now."""
    graph = grimp.build_graph("serving", "cluster")
    return HEAD + "".join(_section(package, arrows(graph, package)) for package in SHOWN)


def arrows(graph: grimp.ImportGraph, package: str) -> Arrows:
    """Which child of `package` imports which others, by their names in it."""
    children = sorted(graph.find_children(package))
    within = {child: {child, *graph.find_descendants(child)} for child in children}
    home = {module: child for child, modules in within.items() for module in modules}
    found: dict[str, set[str]] = {child: set() for child in children}
    for child, modules in within.items():
        for module in modules:
            found[child] |= {home[other] for other in graph.find_modules_directly_imported_by(module) if other in home}
        found[child].discard(child)
    return {child.rpartition(".")[2]: {other.rpartition(".")[2] for other in found[child]} for child in children}


def reduced(all_arrows: Arrows) -> Arrows:
    """Without the arrows that a longer way replaces. There must be no circle."""
    reach: dict[str, set[str]] = {}

    def reached(name: str) -> set[str]:
        if name not in reach:
            reach[name] = set(all_arrows[name]).union(*(reached(other) for other in all_arrows[name]))
        return reach[name]

    return {
        name: {one for one in others if not any(one in reached(other) for other in others - {one})}
        for name, others in all_arrows.items()
    }


def _section(package: str, found: Arrows) -> str:
    lines = [f"  {name} --> {other}" for name, others in reduced(found).items() for other in sorted(others)]
    alone = [f"  {name}" for name, others in found.items() if not others and all(name not in o for o in found.values())]
    return "\n".join(["", f"## {package}", "", "```mermaid", "flowchart TD", *alone, *lines, "```", ""])


if __name__ == "__main__":
    PICTURE.write_text(page())
