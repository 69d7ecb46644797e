//! `.deny.toml` for those who have no cargo-deny: every dependency's licence allows this project's own, nothing banned
//! is in the tree, every crate that is there in two versions has its reason, and all come from the registry.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value as Json;
use toml::Value as Toml;

/// What `.deny.toml` says.
struct Policy {
    targets: Vec<String>,
    allow: HashSet<String>,
    exceptions: BTreeMap<String, HashSet<String>>,
    deny: BTreeMap<String, String>,
    skip: HashSet<(String, String)>,
}

/// A dependency.
#[derive(Clone)]
struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    source: Option<String>,
}

fn strings(value: Option<&Toml>) -> Vec<String> {
    let list = value.and_then(Toml::as_array).expect(".deny.toml: a list");
    list.iter().map(|v| v.as_str().expect(".deny.toml: a string").to_owned()).collect()
}

fn tables<'a>(section: &'a Toml, key: &str) -> Vec<&'a Toml> {
    section.get(key).and_then(Toml::as_array).expect(".deny.toml: a list of tables").iter().collect()
}

fn word<'a>(entry: &'a Toml, key: &str) -> &'a str {
    entry.get(key).and_then(Toml::as_str).unwrap_or_else(|| panic!(".deny.toml: {entry:?} has no {key}"))
}

fn policy() -> Policy {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deny.toml");
    let text = std::fs::read_to_string(path).expect(".deny.toml");
    let file = Toml::Table(text.parse().expect(".deny.toml is TOML"));
    let (licenses, bans) = (&file["licenses"], &file["bans"]);
    Policy {
        targets: strings(file["graph"].get("targets")),
        allow: strings(licenses.get("allow")).into_iter().collect(),
        exceptions: tables(licenses, "exceptions")
            .into_iter()
            .map(|e| (word(e, "crate").to_owned(), strings(e.get("allow")).into_iter().collect()))
            .collect(),
        deny: tables(bans, "deny")
            .into_iter()
            .map(|e| (word(e, "crate").to_owned(), word(e, "reason").to_owned()))
            .collect(),
        skip: tables(bans, "skip")
            .into_iter()
            .map(|e| {
                assert!(!word(e, "reason").is_empty());
                let (name, version) = word(e, "crate").split_once('@').expect(".deny.toml: skip NAME@VERSION");
                (name.to_owned(), version.to_owned())
            })
            .collect(),
    }
}

/// Every crate that a build for one of the targets needs; those of tests only are left out (`graph.exclude-dev`).
fn packages(targets: &[String]) -> Vec<Package> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    for target in targets {
        cargo.args(["--filter-platform", target]);
    }
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Json = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let text = |v: &Json| v.as_str().map(str::to_owned);
    let needed = needed(&metadata);
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter(|p| p["id"].as_str().is_some_and(|id| needed.contains(id)))
        .map(|p| Package {
            name: text(&p["name"]).expect("a name"),
            version: text(&p["version"]).expect("a version"),
            licence: text(&p["license"]),
            source: text(&p["source"]),
        })
        .collect()
}

/// The ids of the workspace's crates and of what they are built from.
fn needed(metadata: &Json) -> HashSet<&str> {
    fn list(v: &Json) -> Vec<&Json> {
        v.as_array().expect("a list").iter().collect()
    }
    let nodes = list(&metadata["resolve"]["nodes"]);
    let mut found = HashSet::new();
    let mut next: Vec<&str> = list(&metadata["workspace_members"]).iter().filter_map(|id| id.as_str()).collect();
    while let Some(id) = next.pop() {
        let Some(node) = nodes.iter().find(|n| n["id"] == id) else { continue };
        if found.insert(node["id"].as_str().expect("an id")) {
            let built = |dep: &&Json| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            next.extend(list(&node["deps"]).into_iter().filter(built).filter_map(|dep| dep["pkg"].as_str()));
        }
    }
    found
}

/// Whether an SPDX expression (`AND`, `OR`, `WITH`, brackets; `/` as an old spelling of `OR`) can be met with licences
/// that `allowed` knows. SPDX 2.3 annex D: `WITH` binds closest, then `AND`, then `OR`.
fn allows(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let answer = any(&words, &mut at, allowed)?;
    if at == words.len() { Ok(answer) } else { Err(format!("`{}` in `{expression}`", words[at])) }
}

fn any(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    let mut answer = all(words, at, allowed)?;
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        answer |= all(words, at, allowed)?;
    }
    Ok(answer)
}

fn all(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    let mut answer = one(words, at, allowed)?;
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        answer &= one(words, at, allowed)?;
    }
    Ok(answer)
}

fn one(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    let word = *words.get(*at).ok_or("it ends too early")?;
    *at += 1;
    match word {
        "(" => {
            let answer = any(words, at, allowed)?;
            if words.get(*at) != Some(&")") {
                return Err("a bracket stays open".to_owned());
            }
            *at += 1;
            Ok(answer)
        }
        ")" | "AND" | "OR" | "WITH" => Err(format!("`{word}` where a licence belongs")),
        licence if words.get(*at) == Some(&"WITH") => {
            let exception = *words.get(*at + 1).ok_or("it ends after WITH")?;
            *at += 2;
            Ok(allowed(&format!("{licence} WITH {exception}")))
        }
        licence => Ok(allowed(licence)),
    }
}

/// The part of a version that may not differ without the crates being strangers: `0.2.17` → `0.2`, `2.0.1` → `2`.
fn compatible(version: &str) -> String {
    let numbers: Vec<&str> = version.split(['.', '-', '+']).collect();
    let until = numbers.iter().position(|n| *n != "0").unwrap_or(numbers.len() - 1);
    numbers[..=until].join(".")
}

/// What is wrong with these packages.
fn faults(policy: &Policy, packages: &[Package]) -> Vec<String> {
    let mut out = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for p in packages {
        let which = format!("{} {}", p.name, p.version);
        let own = policy.exceptions.get(&p.name);
        let allowed = |l: &str| policy.allow.contains(l) || own.is_some_and(|o| o.contains(l));
        match &p.licence {
            None => out.push(format!("{which}: names no licence")),
            Some(licence) => match allows(licence, &allowed) {
                Ok(true) => {}
                Ok(false) => out.push(format!("{which}: licence {licence} is not in .deny.toml")),
                Err(e) => out.push(format!("{which}: licence {licence} cannot be read: {e}")),
            },
        }
        if let Some(reason) = policy.deny.get(&p.name) {
            out.push(format!("{which}: banned, {reason}"));
        }
        match &p.source {
            Some(source) if source != "registry+https://github.com/rust-lang/crates.io-index" => {
                out.push(format!("{which}: comes from {source}"));
            }
            _ => versions.entry(&p.name).or_default().push(&p.version),
        }
    }
    for (name, found) in versions.into_iter().filter(|(_, found)| found.len() > 1) {
        let left: Vec<&&str> =
            found.iter().filter(|v| !policy.skip.contains(&(name.to_owned(), compatible(v)))).collect();
        if left.len() > 1 {
            out.push(format!("{name}: versions {left:?}; .deny.toml gives no reason (bans.skip)"));
        }
    }
    out
}

#[test]
fn dependencies_keep_the_policy() {
    let policy = policy();
    let packages = packages(&policy.targets);
    assert!(packages.iter().any(|p| p.name == "peervpn-platform"), "cargo metadata lists this workspace");
    let faults = faults(&policy, &packages);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    println!("{} crates", packages.len());
}

#[test]
fn the_policy_carries_nothing_stale() {
    let policy = policy();
    let packages = packages(&policy.targets);
    for name in policy.exceptions.keys() {
        assert!(packages.iter().any(|p| &p.name == name), "exception for {name}, which is gone");
    }
    for (name, version) in &policy.skip {
        let versions: HashSet<String> =
            packages.iter().filter(|p| &p.name == name).map(|p| compatible(&p.version)).collect();
        assert!(versions.contains(version) && versions.len() > 1, "skip of {name}@{version}, which is not needed");
    }
}

#[test]
fn the_readme_lists_every_direct_dependency() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("README.md");
    let (_, section) = readme.split_once("### Dependencies").expect("README.md: ### Dependencies");
    let (table, _) = section.split_once("\n\nNot used").expect("README.md: the table's end");
    let rows: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            Some((cells.next()?.strip_prefix('`')?.strip_suffix('`')?, cells.next()?))
        })
        .collect();
    let mut direct = HashSet::new();
    for manifest in ["Cargo.toml", "platform/Cargo.toml"] {
        let text = std::fs::read_to_string(root.join(manifest)).expect(manifest);
        let file: toml::Table = text.parse().expect(manifest);
        let mut tables: Vec<&toml::Table> = vec![&file];
        tables.extend(
            file.get("target").and_then(Toml::as_table).into_iter().flat_map(|t| t.values()).filter_map(Toml::as_table),
        );
        for table in tables {
            for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
                direct.extend(table.get(kind).and_then(Toml::as_table).into_iter().flat_map(|t| t.keys().cloned()));
            }
        }
    }
    direct.remove("peervpn-platform");
    direct.remove("peervpn");
    let listed: HashSet<String> = rows.iter().map(|(name, _)| (*name).to_owned()).collect();
    let missing: Vec<_> = direct.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&direct).collect();
    assert!(missing.is_empty() && stale.is_empty(), "README.md lacks {missing:?} and has {stale:?} too many");
    let packages = packages(&policy().targets);
    for (name, licence) in rows {
        // tests-only crates are not among the packages
        let known: Vec<_> = packages.iter().filter(|p| p.name == name).filter_map(|p| p.licence.as_deref()).collect();
        let same = known.is_empty() || known.iter().any(|l| l.replace('/', " OR ") == licence);
        assert!(same, "README.md: {name} is under {known:?}, not {licence}");
    }
}

#[test]
fn faults_are_seen() {
    let policy = policy();
    let package = |name: &str, version: &str, licence: Option<&str>| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        licence: licence.map(str::to_owned),
        source: Some("registry+https://github.com/rust-lang/crates.io-index".to_owned()),
    };
    let good = package("good", "1.0.0", Some("MIT"));
    assert!(faults(&policy, std::slice::from_ref(&good)).is_empty());
    let elsewhere = Package { source: Some("git+https://example.org/x".to_owned()), ..good.clone() };
    for bad in [
        vec![package("x", "1.0.0", None)],
        vec![package("x", "1.0.0", Some("GPL-3.0"))],
        vec![package("x", "1.0.0", Some("MPL-2.0"))],
        vec![package("x", "1.0.0", Some("MIT AND GPL-3.0"))],
        vec![package("x", "1.0.0", Some("MIT OR"))],
        vec![package("async-std", "1.0.0", Some("MIT"))],
        vec![good.clone(), package("good", "2.0.0", Some("MIT"))],
        vec![elsewhere],
    ] {
        assert_eq!(faults(&policy, &bad).len(), 1, "{:?}", faults(&policy, &bad));
    }
}

#[test]
fn expressions_bind_as_spdx_says() {
    let mit = |l: &str| l == "MIT" || l == "Apache-2.0 WITH LLVM-exception";
    for (expression, answer) in [
        ("MIT", true),
        ("GPL-2.0", false),
        ("GPL-2.0/MIT", true),
        ("MIT OR GPL-2.0 AND GPL-3.0", true),
        ("(MIT OR GPL-2.0) AND GPL-3.0", false),
        ("Apache-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0 WITH LLVM-exception AND (GPL-2.0 OR MIT)", true),
    ] {
        assert_eq!(allows(expression, &mit), Ok(answer), "{expression}");
    }
    for broken in ["", "MIT OR", "(MIT", "MIT MIT", "AND MIT", "MIT WITH"] {
        assert!(allows(broken, &mit).is_err(), "{broken}");
    }
    assert_eq!([compatible("0.2.17"), compatible("2.0.1"), compatible("0.0.3")], ["0.2", "2", "0.0.3"]);
}
