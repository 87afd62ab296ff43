"""Who imports whom in course_lib, floor by floor, from the ground up: python tools/floors.py

A module knows what stands to its right. tests/test_house.py holds the rules; this is for eyes.
"""
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "course_lib"


def knows(path):
    "The modules of the library that this one imports, those inside of functions in parentheses."
    tree, found = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom): continue
        base = ["course_lib", *path.relative_to(LIBRARY).parts[:-1]]
        base = base[:len(base) + 1 - node.level] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        modules = [module]
        if module in ("course_lib", "course_lib.support", "course_lib.figures"):  # from .support import checks
            modules = [f"{module}.{alias.name}" for alias in node.names]
        for name in modules:
            if name.startswith("course_lib."):
                short = name.removeprefix("course_lib.")
                found[short] = found.get(short, False) or node in tree.body
    return [name if at_the_top else f"({name})" for name, at_the_top in sorted(found.items())]


def main():
    lessons = [path.stem.split("_", 1)[1] for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))]
    floors = {"support: the ground": sorted((LIBRARY / "support").glob("*.py")),
              "lessons, in the order of the chapters": [path for name in lessons
                                                        if (path := LIBRARY / f"{name}.py").exists()],
              "figures": sorted((LIBRARY / "figures").glob("*.py")),
              "exercises": sorted((LIBRARY / "exercises").glob("*.py"))}
    for floor, paths in floors.items():
        paths = [path for path in paths if path.stem != "__init__"]
        if paths: print(f"\n{floor}")
        for path in paths:
            print(f"  {path.stem:15} {len(path.read_text().splitlines()):5} lines   {', '.join(knows(path))}")


if __name__ == "__main__":
    main()
