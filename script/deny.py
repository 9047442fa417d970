#!/usr/bin/env python3
"""Licences, bans and sources of the dependency tree against deny.toml, where cargo-deny is not installed.

Reads what `cargo metadata` says without the network. Knows as much of deny.toml as this project's uses, and
stops at what it does not know. Not here: advisories (there is no database), and licence texts: it believes
the `license` field. Needs Python 3.11 for tomllib.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
KNOWN = {
    "graph": {"targets", "all-features"},
    "advisories": {"ignore"},
    "licenses": {"allow", "confidence-threshold"},
    "bans": {"multiple-versions", "wildcards", "deny"},
    "sources": {"unknown-registry", "unknown-git"},
}


def allowed(expression, licences):
    """Whether an SPDX expression can be met with these licences alone (`/` is the old way to write OR)."""
    words = re.findall(r"[()]|[^\s()/]+|/", expression)

    def either():
        met = both()
        while words and words[0] in ("OR", "/"):
            words.pop(0)
            met = both() or met
        return met

    def both():
        met = one()
        while words and words[0] == "AND":
            words.pop(0)
            met = one() and met
        return met

    def one():
        word = words.pop(0)
        if word == "(":
            met = either()
            words.pop(0)
            return met
        # A licence with an exception to it is another licence.
        if words and words[0] == "WITH":
            word = f"{word} WITH {words.pop(1)}"
            words.pop(0)
        return word in licences

    return either() and not words


def main():
    root = Path(__file__).resolve().parent.parent
    rules = tomllib.loads((root / "deny.toml").read_text())
    for section, keys in rules.items():
        if unknown := set(keys) - KNOWN.get(section, set()):
            sys.exit(f"deny.toml: {section}.{sorted(unknown)[0]} is for cargo-deny; this script does not know it")
    metadata = ["cargo", "metadata", "--format-version=1", "--locked", "--all-features"]
    metadata += [f"--filter-platform={target}" for target in rules["graph"]["targets"]]
    tree = json.loads(subprocess.run(metadata, cwd=root, check=True, stdout=subprocess.PIPE).stdout)
    resolved = {node["id"] for node in tree["resolve"]["nodes"]}
    own = set(tree["workspace_members"])
    banned = {ban["crate"]: ban["reason"] for ban in rules["bans"]["deny"]}

    problems = []
    for package in tree["packages"]:
        if package["id"] not in resolved:
            continue
        name = f"{package['name']} {package['version']}"
        if package["name"] in banned:
            problems.append(f"{name} is banned: {banned[package['name']]}")
        if not allowed(package["license"] or "none", set(rules["licenses"]["allow"])):
            problems.append(f"{name} is licensed {package['license'] or 'in no named way'}, which deny.toml does not allow")
        if package["id"] in own:
            wild = [wanted["name"] for wanted in package["dependencies"] if wanted["req"] == "*" and not wanted.get("path")]
            problems += [f"{name} takes any version of {wanted}" for wanted in wild]
        elif package["source"] != CRATES_IO:
            problems.append(f"{name} comes from {package['source'] or package['manifest_path']}, not from crates.io")
    for problem in problems:
        print(problem)
    print(f"{len(resolved)} packages, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
