//! The layers of the code: imports that must never exist.

use std::fs;
use std::path::{Path, PathBuf};

/// From where, to where it must not lead, and why.
const NEVER: [(&str, &[&str], &str); 8] = [
    ("policy", EVERYTHING, "the rules are pure: time, keys and sockets are nothing to them"),
    ("token", EVERYTHING, "tokens are pure: keys and time are arguments"),
    (
        "config",
        &["server", "proxy", "login", "admin", "cli", "store", "wire"],
        "a file is read before anything of it runs",
    ),
    ("store", &["server", "proxy", "login", "admin", "cli", "config", "wire"], "a store knows users alone"),
    (
        "wire",
        &["server", "proxy", "login", "admin", "cli", "store"],
        "the wire knows HTTP, not what it is for",
    ),
    ("proxy", &["login", "cli"], "forwarding has nothing to do with passwords"),
    ("login", &["proxy", "cli"], "logging in has nothing to do with forwarding"),
    ("", &["cli"], "the command line is the outermost layer: only main names it"),
];

/// Every module; a new one is added here, and gets its rows above.
const EVERYTHING: &[&str] = &[
    "admin", "cli", "config", "fetch", "login", "observe", "policy", "proxy", "server", "store", "stream",
    "timer", "token", "wire",
];

/// The module that a file of `src` belongs to: `wire` for `wire/client.rs`, `admin` for `admin.rs`.
fn module_of(file: &Path, root: &Path) -> String {
    let inside = file.strip_prefix(root).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a text names after `crate::`, with their lines; comments are not code.
fn named_in(text: &str) -> Vec<(usize, String)> {
    let code =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut named = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let line = code[..at].lines().count().max(1);
        let rest = &code[at + "crate::".len()..];
        // `use crate::{a::b, c::{d, e}}` names the words at the first level.
        match rest.strip_prefix('{') {
            None => named.push((line, word(rest))),
            Some(list) => {
                let (mut depth, mut start) = (0, true);
                for (offset, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            named.push((line + list[..offset].matches('\n').count(), word(&list[offset..])));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    named
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_module_imports_what_it_must_never_know() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    assert!(files.len() > 30, "the sources are where this test looks");
    let mut told = Vec::new();
    for file in files {
        let from = module_of(&file, &root);
        if matches!(from.as_str(), "lib" | "main" | "bin") {
            continue;
        }
        assert!(
            EVERYTHING.contains(&from.as_str()),
            "the module `{from}` is new: give it its layer in this test"
        );
        for (line, to) in named_in(&fs::read_to_string(&file).unwrap()) {
            for (module, never, why) in NEVER {
                let concerned = module.is_empty() || module == from;
                if concerned && to != from && never.contains(&to.as_str()) {
                    let place = file.strip_prefix(root.parent().unwrap()).unwrap().display().to_string();
                    told.push(format!("{place}:{line}: `{from}` must not import `{to}`: {why}"));
                }
            }
        }
    }
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[test]
fn an_import_is_seen_in_every_way_it_can_be_written() {
    for (text, is) in [
        ("use crate::store::Users;", vec![(1, "store")]),
        ("\n    let x = crate::cli::main();", vec![(2, "cli")]),
        ("use crate::{\n    login::{a, b},\n    store::{Users},\n};", vec![(2, "login"), (3, "store")]),
        ("use crate::{proxy, wire};", vec![(1, "proxy"), (1, "wire")]),
        ("pub(crate) use x; // crate::cli", vec![]),
        ("//! [`crate::server`]", vec![]),
        ("use mycrate::cli;", vec![]),
    ] {
        let is: Vec<_> = is.into_iter().map(|(line, name)| (line, name.to_owned())).collect();
        assert_eq!(named_in(text), is, "{text}");
    }
}
