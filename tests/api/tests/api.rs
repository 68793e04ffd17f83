//! The public API of our crates as a text beside each of them, and no foreign type in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::{env, fs};

use serde_json::Value;

#[path = "../../support/cargo.rs"]
mod cargo;

/// Says that a change is meant.
const ACCEPT: &str = "UNISOCKETS_ACCEPT_API";
/// Our crates, and the folder of each.
const CRATES: [(&str, &str); 4] = [
    ("unisockets", ""),
    ("unisockets-stack", "stack"),
    ("unisockets-link", "link"),
    ("unisockets-signaling", "signaling"),
];
/// Whose types a crate's public signatures may name, besides ours and the language's: streams are tokio's to
/// programs, bytes are shared without a copy, and messages have a form for serde.
const FOREIGN: [(&str, &[&str]); 4] = [
    ("unisockets", &["serde_core", "tokio"]),
    ("unisockets-stack", &[]),
    ("unisockets-link", &["bytes", "serde_core"]),
    ("unisockets-signaling", &["serde_core", "tokio"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there")
}

/// Has rustdoc write what it knows of our crates, once, and returns where one of them is described.
fn documented(name: &str) -> PathBuf {
    // Where this test was built: what the crates need has been checked there already, if with the same features.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in the target folder");
    static DOCUMENTED: Once = Once::new();
    DOCUMENTED.call_once(|| {
        let output = cargo::without_package(&mut Command::new(env!("CARGO")))
            .current_dir(root())
            .args([
                "doc",
                "--locked",
                "--workspace",
                "--exclude",
                "unisockets-capi",
                "--no-deps",
                "--lib",
                "--target-dir",
            ])
            .arg(target)
            .env("RUSTDOC", root().join("tests/api/rustdoc"))
            .env("RUSTDOCFLAGS", "-Zunstable-options --output-format=json --cap-lints=allow")
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
    target.join("doc").join(format!("{}.json", name.replace('-', "_")))
}

#[test]
fn the_public_api_is_what_its_text_says() {
    let accepts = env::var_os(ACCEPT).is_some();
    let mut changed = Vec::new();
    for (name, folder) in CRATES {
        let json = documented(name);
        let api = public_api::Builder::from_rustdoc_json(&json)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(true)
            .omit_auto_derived_impls(true)
            .build()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let text = api.to_string();
        assert!(text.lines().count() > 50, "{name} has a public API");
        let file = root().join(folder).join("public-api.txt");
        let before = fs::read_to_string(&file).unwrap_or_default();
        if accepts {
            fs::write(&file, &text).expect("the text can be written");
        } else if before != text {
            changed.push(difference(name, &before, &text));
        }
    }
    assert!(
        changed.is_empty(),
        "the public API has changed; `make accept-api` writes it down if that is meant:\n{}",
        changed.join("\n")
    );
}

/// Says which lines have come and gone.
fn difference(name: &str, before: &str, after: &str) -> String {
    let (before, after): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    let gone = before.difference(&after).map(|line| format!("  - {line}"));
    let come = after.difference(&before).map(|line| format!("  + {line}"));
    let order = before == after;
    let lines: Vec<String> = gone.chain(come).chain(order.then(|| "  the order of lines".to_owned())).collect();
    format!("{name}\n{}", lines.join("\n"))
}

#[test]
fn no_foreign_type_stands_in_a_public_signature() {
    let mut violations = Vec::new();
    for (name, allowed) in FOREIGN {
        let json = fs::read(documented(name)).expect("rustdoc has written it");
        let json: Value = serde_json::from_slice(&json).expect("it is JSON");
        for (owner, path) in foreign(&json) {
            if !allowed.contains(&owner.as_str()) {
                violations.push(format!("{name} names {path}"));
            }
        }
    }
    assert!(
        violations.is_empty(),
        "a public signature holds others to a crate that only one of ours may know:\n{}",
        violations.join("\n")
    );
}

/// Finds the crates of others in what a crate's public items name, each with a path.
fn foreign(json: &Value) -> BTreeSet<(String, String)> {
    let ours = ["std", "core", "alloc", "proc_macro"];
    let mut named = BTreeSet::new();
    let items = json["index"].as_object().expect("an index of items");
    for item in items.values().filter(|item| item["inner"]["impl"]["blanket_impl"].is_null()) {
        // What others implement for every type is theirs: it stands in their files.
        let file = item["span"]["filename"].as_str().unwrap_or_default();
        let visible = item["visibility"] == "public" || item["visibility"] == "default";
        if visible && Path::new(file).is_relative() {
            references(&item["inner"], &mut named);
        }
    }
    let mut found = BTreeSet::new();
    for id in named {
        let Some(summary) = json["paths"].get(id.to_string()) else {
            continue;
        };
        let owner = &json["external_crates"][summary["crate_id"].to_string()]["name"];
        let Some(owner) = owner.as_str() else {
            continue;
        };
        if !ours.contains(&owner) && !owner.starts_with("unisockets") {
            let path: Vec<&str> = summary["path"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            found.insert((owner.to_owned(), path.join("::")));
        }
    }
    found
}

/// Collects the identifiers of all types and traits that a part of an item names.
fn references(value: &Value, named: &mut BTreeSet<u64>) {
    match value {
        Value::Object(fields) => {
            let is_path = fields.contains_key("path") && fields.contains_key("args");
            if let Some(id) = fields.get("id").and_then(Value::as_u64).filter(|_| is_path) {
                named.insert(id);
            }
            fields.values().for_each(|field| references(field, named));
        }
        Value::Array(parts) => parts.iter().for_each(|part| references(part, named)),
        _ => {}
    }
}
