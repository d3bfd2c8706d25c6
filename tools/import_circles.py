#!/usr/bin/env python3
"""Finds import cycles: modules of a crate that import each other, directly or through others.

    python3 tools/import_circles.py [FOLDER_OF_CRATE ...]

The program reads the source files of `crates/*/src`, except for code that is compiled only for tests or only with the feature `cuda` of
mp4sr-ops. It prints each cycle as `crate: a -> b -> a`, and exits with 1 if there is any. A file imports another file if it names one of
its items, in a `use` declaration or in a path such as `crate::table::Column`. A name that a third module re-exports counts as an import of
the module that defines it, so a parent that only declares and re-exports its children imports nothing. Method calls do not count, and
neither do paths that a macro assembles.
"""
import re
import sys
from pathlib import Path

# Comments and literals, in which paths are ignored.
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(?P<hashes>\#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?'(?:\\u\{[^}]*\}|\\x..|\\.|[^\\'])'""",
    re.S | re.X,
)
VISIBLE = r"(?P<visible>\bpub(?:\s*\([^)]*\))?\s+)?"
USE = re.compile(VISIBLE + r"\buse\s+(?P<tree>[^;]+);")
# The GPU operators are left out: a sparse matrix holds its copy on the GPU, and the code that makes the copy names the matrix.
LEFT_OUT = re.compile(r"#\s*\[\s*cfg\s*\(\s*feature\s*=\s*\"cuda\"\s*\)\s*\]\s*\Z")
MODULE = re.compile(VISIBLE + r"\bmod\s+(?P<name>\w+)\s*(?P<end>[;{])")
TEST = re.compile(r"#\s*\[\s*cfg\s*\(\s*test\s*\)\s*\]")
PATH = re.compile(r"(?<![\w:.])\w+(?:\s*::\s*\w+)+")


def block_end(code, start):
    """Returns the index after the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(code)):
        if code[index] in "([{":
            depth += 1
        elif code[index] in ")]}":
            depth -= 1
            if depth == 0:
                return index + 1
    raise ValueError("a bracket is not closed")


def without_tests(code):
    """Returns `code` without the items that are compiled only for tests."""
    while test := TEST.search(code):
        end = test.end()
        # Brackets in further attributes and in the signature of the item may contain `;` and `{`.
        while code[end] not in ";{":
            end = block_end(code, end) if code[end] in "([" else end + 1
        end = block_end(code, end) if code[end] == "{" else end + 1
        code = code[: test.start()] + code[end:]
    return code


def leaves(tree, prefix=()):
    """Yields the paths of a `use` tree such as `a::{b, c::D as E}`, each with the name that it introduces."""
    tree = tree.strip()
    if "{" in tree:
        head, rest = tree.split("{", 1)
        prefix += tuple(part.strip() for part in head.split("::") if part.strip())
        rest = rest[: rest.rindex("}")]
        depth, start = 0, 0
        for index, character in enumerate(rest + ","):
            depth += (character == "{") - (character == "}")
            if character == "," and depth == 0:
                if rest[start:index].strip():
                    yield from leaves(rest[start:index], prefix)
                start = index + 1
        return
    path, _, name = tree.partition(" as ")
    path = prefix + tuple(part.strip() for part in path.split("::") if part.strip())
    if path[-1] == "self" and len(path) > 1:
        path = path[:-1]
    yield path, name.strip() or path[-1]


class Module:
    """A module: its children, the names that its `use` declarations import, and the rest of its code."""

    def __init__(self, code, file, folder, parent=None):
        self.file, self.parent, self.children, self.names, self.globs = file, parent, {}, {}, []
        while module := MODULE.search(code):
            name, start, end = module["name"], module.start(), module.end()
            if attribute := LEFT_OUT.search(code, 0, start):
                start = attribute.start()
                self.children[name] = None
            elif module["end"] == "{":
                end = block_end(code, end - 1)
                self.children[name] = Module(code[module.end() : end - 1], file, folder / name, self)
            else:
                found = [path for path in (folder / f"{name}.rs", folder / name / "mod.rs") if path.is_file()]
                self.children[name] = read(found[0], folder / name, self)
            code = code[:start] + code[end:]
        for use in USE.finditer(code):
            for path, name in leaves(use["tree"]):
                if path[-1] == "*":
                    self.globs.append((path[:-1], bool(use["visible"])))
                else:
                    self.names.setdefault(name, []).append((path, bool(use["visible"])))
        self.code = USE.sub("", code)

    def root(self):
        return self.parent.root() if self.parent else self

    def all(self):
        yield self
        for child in filter(None, self.children.values()):
            yield from child.all()

    def resolve(self, path, seen=frozenset()):
        """Returns the modules that define what `path` names in this module, as pairs `(module, whether it names the module itself)`."""
        first, rest = path[0], path[1:]
        start = {"crate": self.root(), "super": self.parent, "self": self}.get(first)
        if start:
            return start.member(rest, seen) if rest else {(start, True)}
        return self.member(path, seen) if first in self.children or first in self.names else set()

    def member(self, path, seen):
        """Returns the same for a `path` whose first name is a child, an import or an item of this module."""
        first, rest = path[0], path[1:]
        if first in ("super", "self"):
            return self.resolve(path, seen)
        # A module and an item may have the same name, as in `pub use rank::rank`; only the module has further names below it.
        if first in self.children and (rest or first not in self.names):
            child = self.children[first]
            return set() if not child else child.member(rest, seen) if rest else {(child, True)}
        found = set()
        # In `use figure::figure`, the first name is not the imported one, but a module or a crate.
        for imported, _ in self.names.get(first, []) if (self, first) not in seen else []:
            found |= self.resolve(imported + rest, seen | {(self, first)})
        if not found and first in self.names and not self.defines(first):
            return set()  # The name belongs to another crate.
        if not found and not self.defines(first):
            for imported, _ in self.globs:
                for module, whole in self.resolve(imported, seen):
                    if whole and (first in module.children or first in module.names or module.defines(first)):
                        found |= module.member(path, seen)
        return found or {(self, False)}

    def defines(self, name):
        return re.search(rf"\b(?:fn|struct|enum|trait|type|const|static|union|macro_rules!)\s+(?:mut\s+)?{name}\b", self.code)

    def imports(self):
        """Returns the files whose items this module names."""
        found = set()
        for name, uses in self.names.items():
            for path, visible in uses:
                # A re-export does not use the name. Importing a whole module does not count; the paths that go through it do.
                if not visible or re.search(rf"\b{name}\b", self.code):
                    found |= {module.file for module, whole in self.resolve(path) if not whole}
        for path, visible in self.globs:
            if not visible:
                found |= {module.file for module, _ in self.resolve(path)}
        for path in PATH.findall(self.code):
            parts = tuple(part.strip() for part in path.split("::"))
            found |= {module.file for module, whole in self.resolve(parts) if not whole}
        return found


def read(file, folder, parent=None):
    """Reads the module of `file`, whose children are in `folder`."""
    kept = {'"cuda"'}  # `LEFT_OUT` needs this literal to find a module.
    code = NO_CODE.sub(lambda match: match[0] if match[0] in kept else " ", file.read_text())
    return Module(without_tests(code), file, folder, parent)


def circles(imports):
    """Returns a shortest cycle through each file that is part of one; a cycle that is found from several files is returned once."""
    found = {}
    for start in sorted(imports):
        paths, reached = [(start,)], {start}
        while paths:
            path = paths.pop(0)
            if start in imports[path[-1]]:
                found.setdefault(frozenset(path), path + (start,))
                break
            for following in sorted(imports[path[-1]] - reached):
                reached.add(following)
                paths.append(path + (following,))
    return found.values()


def main():
    workspace = Path(__file__).resolve().parent.parent
    crates = [Path(crate) for crate in sys.argv[1:]] or sorted(path.parent for path in workspace.glob("crates/*/src"))
    failed = False
    for crate in crates:
        source = crate / "src"
        for file in [source / "lib.rs", source / "main.rs", *sorted(source.glob("bin/*.rs"))]:
            if not file.is_file():
                continue
            imports = {}
            for module in read(file, source).all():
                imports.setdefault(module.file, set()).update(module.imports() - {module.file})
            for circle in circles(imports):
                failed = True
                print(f"{crate.name}: " + " -> ".join(str(path.relative_to(source)) for path in circle))
    if not failed:
        print("import cycles: none")
    sys.exit(failed)


if __name__ == "__main__":
    main()
