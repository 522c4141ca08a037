//! House rules as a test: who may use whom, and what may not stand in the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The allowed arrows between our crates (`ARCHITECTURE.md`, "Who may use whom").
const ARROWS: &[(&str, &[&str])] = &[
    ("ledger", &[]),
    ("storage", &["ledger"]),
    ("proto", &["ledger"]),
    ("raft", &["ledger", "storage", "proto"]),
    ("client", &["ledger", "proto"]),
    ("node", &["ledger", "storage", "proto", "raft"]),
    ("cli", &["ledger", "storage", "proto", "client", "node"]),
    ("fuzz", &[]),
    ("chaos-tests", &["ledger", "storage", "proto", "raft", "client", "node"]),
];

/// Crates that must stay synchronous and pure of what stands above them: (crate, dependencies it must not name).
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("ledger", &["tokio", "serde", "rand", "tracing", "getrandom", "bytes"]),
    ("storage", &["tokio", "futures", "tonic", "openraft", "serde", "rand", "getrandom", "prost"]),
    ("proto", &["openraft", "tokio"]),
    ("client", &["openraft"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// Names below `[dependencies]` and `[build-dependencies]` of a manifest; test dependencies are free.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut names = BTreeSet::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_string();
        } else if (section == "dependencies" || section == "build-dependencies" || section.starts_with("target"))
            && let Some(name) =
                line.split(['.', ' ', '=']).next().filter(|name| !name.is_empty() && !name.starts_with('#'))
        {
            names.insert(name.to_string());
        }
    }
    names
}

fn manifests() -> BTreeMap<String, BTreeSet<String>> {
    ARROWS
        .iter()
        .map(|(name, _)| {
            let path = root().join(name).join("Cargo.toml");
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (name.to_string(), dependencies(&text))
        })
        .collect()
}

#[test]
fn dependency_arrows_point_down_only() {
    let manifests = manifests();
    for (name, allowed) in ARROWS {
        for dependency in &manifests[*name] {
            if let Some(ours) = dependency.strip_prefix("alhambra-") {
                assert!(allowed.contains(&ours), "{name} must not use {ours} (ARCHITECTURE.md, who may use whom)");
            }
        }
    }
    for (name, forbidden) in FORBIDDEN {
        for dependency in *forbidden {
            assert!(!manifests[*name].contains(*dependency), "{name} must not use {dependency}");
        }
    }
}

#[test]
fn every_workspace_member_has_its_arrows() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("root manifest");
    let line = text.lines().find(|line| line.starts_with("members")).expect("members");
    let members: BTreeSet<&str> = line.split('"').skip(1).step_by(2).collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(members, known, "a new crate needs a row in ARROWS and in ARCHITECTURE.md");
}

#[test]
fn every_dependency_has_a_reason() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("root manifest");
    let reasons = fs::read_to_string(root().join("docs/dependencies.md")).expect("docs/dependencies.md");
    let section = text.split("[workspace.dependencies]").nth(1).expect("section").split("\n[").next().expect("body");
    for line in section.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let name = line.split([' ', '=', '.']).next().expect("a name");
        if !name.starts_with("alhambra-") {
            assert!(reasons.contains(&format!("`{name}`")), "docs/dependencies.md does not say why `{name}` is used");
        }
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readable folder").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
}

#[test]
fn sources_keep_the_house_rules() {
    // Spelled in halves, so that this file does not find itself.
    let banned = [concat!("todo", "!("), concat!("unimpl", "emented!("), concat!("FIX", "ME"), concat!("#[ign", "ore")];
    for (name, _) in ARROWS {
        let mut found = Vec::new();
        sources(&root().join(name), &mut found);
        for path in found {
            let text = fs::read_to_string(&path).expect("utf-8 source");
            for word in banned {
                assert!(!text.contains(word), "{}: {word} is not left in the tree", path.display());
            }
            let in_source = path.starts_with(root().join(name).join("src"));
            if in_source && ["ledger", "storage", "raft", "node", "proto"].contains(name) {
                assert!(!text.contains("thread::sleep"), "{}: the server waits on conditions", path.display());
            }
        }
    }
}
