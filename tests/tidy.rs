//! Rules of the repository that a machine can check: layers, lengths, words, names.
//!
//! A rule that does not fit is changed here, with its reason; it is not worked around in the sources.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

/// Lines of a source file before its unit tests.
const FILE_LINES_MAX: usize = 600;
/// Lines of a function, from its `fn` to its closing brace: one screen.
const FUNCTION_LINES_MAX: usize = 70;
/// Boundary files that may hold `unsafe`, each with SAFETY comments on every block.
const UNSAFE_FILES: &[&str] = &[
    "stack/src/buffers/region.rs",
    "src/host/descriptor.rs",
    // A device and namespaces: calls of the kernel that move descriptors and the ground under a process.
    "src/cli/isolate.rs",
    "src/device/tun.rs",
    // What C calls, and what calls the kernel by number.
    "capi/calls/src/address.rs",
    "capi/calls/src/boundary.rs",
    "capi/calls/src/fork.rs",
    "capi/calls/src/names.rs",
    "capi/calls/src/system.rs",
    "capi/calls/src/transfer.rs",
    // Names and documentation of these calls for C, one line of code each.
    "capi/preload/src/lib.rs",
    "capi/preload/src/syscall.rs",
    "capi/src/names.rs",
    "capi/src/network.rs",
    "capi/src/options.rs",
    "capi/src/sockets.rs",
    "capi/src/transfer.rs",
];
/// The layers, which never name each other, nor the crate above them.
const LAYERS: [&str; 3] = ["stack", "link", "signaling"];
/// Foreign crates, with the one folder that may name them.
const FOREIGN: [(&str, &str); 7] = [
    ("memmap2", "stack"),
    ("smoltcp", "stack"),
    ("webrtc", "link"),
    ("rtc", "link"),
    ("tokio-tungstenite", "signaling"),
    ("tungstenite", "signaling"),
    ("async-tungstenite", "signaling"),
];
/// Folders of programs that prove or measure: lengths and names are not checked there.
const PROOFS: [&str; 5] = ["tests", "benches", "bench", "examples", "fuzz"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Lists the files of the repository: tracked, or new and not ignored.
fn files() -> Vec<String> {
    let arguments = ["ls-files", "-z", "-co", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(root()).output();
    let output = output.expect("this test needs git, to know which files belong to the repository");
    assert!(output.status.success(), "git ls-files failed: this test runs in a clone of the repository");
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let exists = |name: &&str| !name.is_empty() && root().join(name).is_file();
    let mut files: Vec<String> = names.split('\0').filter(exists).map(str::to_owned).collect();
    files.sort();
    files.dedup();
    assert!(files.iter().any(|file| file == "Cargo.toml"), "git lists another folder than the repository's");
    files
}

/// Reads a text file; nothing for a binary one.
fn text(file: &str) -> Option<String> {
    let bytes = fs::read(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    if bytes.contains(&0) { None } else { String::from_utf8(bytes).ok() }
}

/// Calls `each` with every Rust source file and its text.
fn sources(mut each: impl FnMut(&str, &str)) {
    for file in files().iter().filter(|file| file.ends_with(".rs")) {
        each(file, &text(file).unwrap_or_else(|| panic!("{file} is not UTF-8")));
    }
}

fn is_proof(file: &str) -> bool {
    Path::new(file).parent().is_some_and(|folder| folder.iter().any(|part| PROOFS.iter().any(|proof| part == *proof)))
}

/// Fails with all violations of a rule at once.
fn report(rule: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{rule}\n  {}\n", violations.join("\n  "));
}

// Layers.

/// The crates that a manifest depends on, in any section and under any name.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let mut found = Vec::new();
    for (section, value) in manifest {
        match (section.as_str(), value.as_table()) {
            ("dependencies" | "dev-dependencies" | "build-dependencies", Some(table)) => {
                for (name, value) in table {
                    let renamed = value.get("package").and_then(toml::Value::as_str);
                    found.push(renamed.unwrap_or(name).to_owned());
                }
            }
            ("target", Some(table)) => {
                found.extend(table.values().filter_map(toml::Value::as_table).flat_map(dependencies))
            }
            _ => {}
        }
    }
    found
}

/// Says what is wrong with an edge from the crate in `folder` to the crate `name`.
fn wrong_edge(folder: &str, name: &str) -> Option<String> {
    let own = LAYERS.iter().any(|layer| name == format!("unisockets-{layer}")) || name == "unisockets";
    if LAYERS.contains(&folder) && own {
        return Some(format!("{folder}/Cargo.toml names {name}: packets and signals pass through the root crate"));
    }
    let owner = |(foreign, _): &&(&str, &str)| {
        name == *foreign || name.strip_prefix(foreign).is_some_and(|rest| rest.starts_with('-'))
    };
    let (_, owner) = FOREIGN.iter().find(owner)?;
    let place = if folder.is_empty() { "Cargo.toml".to_owned() } else { format!("{folder}/Cargo.toml") };
    (folder != *owner).then(|| format!("{place} names {name}: only {owner}/ may; ask it for what you need"))
}

#[test]
fn layers_never_name_each_other() {
    let manifests: Vec<String> = files().into_iter().filter(|file| file.ends_with("Cargo.toml")).collect();
    let mut violations = Vec::new();
    for file in &manifests {
        let manifest: toml::Table =
            text(file).unwrap_or_default().parse().unwrap_or_else(|error| panic!("{file}: {error}"));
        let folder = file.trim_end_matches("Cargo.toml").trim_end_matches('/');
        violations.extend(dependencies(&manifest).iter().filter_map(|name| wrong_edge(folder, name)));
    }
    for layer in LAYERS {
        assert!(manifests.contains(&format!("{layer}/Cargo.toml")), "the layer {layer} has moved: tell this test");
    }
    report("These edges between crates are forbidden (ARCHITECTURE.md says why):", &violations);
}

#[test]
fn forbidden_edges_are_seen_in_every_section_and_under_other_names() {
    let manifest: toml::Table = r#"
        [dev-dependencies]
        wire = { package = "smoltcp", version = "1" }
        [target.'cfg(unix)'.dependencies]
        unisockets-link = "1"
    "#
    .parse()
    .unwrap();
    let mut names = dependencies(&manifest);
    names.sort();
    assert_eq!(names, ["smoltcp", "unisockets-link"]);
    assert!(wrong_edge("link", "smoltcp").is_some() && wrong_edge("stack", "smoltcp").is_none());
    assert!(wrong_edge("stack", "unisockets-link").is_some() && wrong_edge("", "unisockets-link").is_none());
    assert!(wrong_edge("", "rtc-ice").is_some() && wrong_edge("", "rtcd").is_none());
}

// A scanner that knows just enough Rust.

/// Replaces comments and the insides of strings and characters by blanks; lines stay where they are.
fn code(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let after_name = out.chars().next_back().is_some_and(is_name);
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment_len(rest),
            '"' => string_len(rest),
            '\'' => character_len(rest),
            'r' if !after_name || out.ends_with('b') || out.ends_with('c') => raw_string_len(rest),
            _ => 0,
        };
        let taken = &rest[..skipped.max(first.len_utf8())];
        match skipped {
            0 => out.push_str(taken),
            _ => out.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' })),
        }
        rest = &rest[taken.len()..];
    }
    out
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_len(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a raw string that starts here, or 0 if none does.
fn raw_string_len(text: &str) -> usize {
    let fence = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    if !text[1 + fence..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(fence));
    let start = fence + 2;
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// The length of a character that starts here, or 0 if it is a lifetime.
fn character_len(text: &str) -> usize {
    let inside = &text[1..];
    if let Some(escape) = inside.strip_prefix('\\') {
        let skipped = escape.chars().next().map_or(0, char::len_utf8);
        return escape[skipped..].find('\'').map_or(0, |at| 2 + skipped + at + 1);
    }
    let first = inside.chars().next().map_or(0, char::len_utf8);
    if first > 0 && inside[first..].starts_with('\'') { first + 2 } else { 0 }
}

/// Finds a word that stands alone.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let alone = move |at: &usize| {
        !code[..*at].chars().next_back().is_some_and(is_name)
            && !code[at + word.len()..].chars().next().is_some_and(is_name)
    };
    code.match_indices(word).map(|(at, _)| at).filter(alone)
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The name that follows a keyword.
fn name_after(code: &str, at: usize) -> &str {
    let rest = code[at..].trim_start();
    &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())]
}

/// Finds the functions of blanked source that have a body: their names and places.
fn functions(code: &str) -> Vec<(&str, Range<usize>)> {
    let found = words(code, "fn").filter_map(|at| {
        let name = name_after(code, at + 2);
        let open = at + body_at(&code[at..])?;
        (!name.is_empty()).then_some((name, at..open + block_len(&code[open..])?))
    });
    found.collect()
}

/// Finds the brace that opens a function's body, behind all brackets of its signature.
fn body_at(code: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            // Only the type of a function pointer stands inside of brackets.
            b')' | b']' => depth = depth.checked_sub(1)?,
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The length of a block that starts with its brace.
fn block_len(code: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

#[test]
fn the_scanner_sees_code_only() {
    let source =
        "let a = \"unsafe \\\" {\"; // unsafe {\n/* unsafe /* { */ */ let b = '{'; let c: &'static str = r#\"}\"\"#;";
    let code = code(source);
    assert!(!code.contains("unsafe") && !code.contains('{') && !code.contains('}'), "{code}");
    assert_eq!(code.lines().count(), source.lines().count());
    assert!(code.contains("'static str") && code.contains("let c"), "{code}");
    let quotes = self::code("let q = ['\\'', '\"', '\\u{7f}', b'{']; unsafe {}");
    assert_eq!(words(&quotes, "unsafe").count(), 1, "{quotes}");
    assert_eq!(words("unsafe_code not_unsafe unsafer", "unsafe").count(), 0);
}

#[test]
fn the_scanner_measures_functions() {
    let source = "trait T { fn a(&self, x: [u8; 2]); fn b() -> [u8; 2] {\n[0; 2]\n} }\nfn c(f: fn(u8) -> u8) { if f(1) == 2 {\n\n} }\n";
    let found = functions(source);
    let lines = |range: &Range<usize>| source[range.clone()].lines().count();
    let found: Vec<(&str, usize)> = found.iter().map(|(name, range)| (*name, lines(range))).collect();
    assert_eq!(found, [("b", 3), ("c", 3)]);
}

// Lengths.

#[test]
fn files_have_one_noun_and_functions_fit_a_screen() {
    let mut violations = Vec::new();
    sources(|file, source| {
        if is_proof(file) {
            return;
        }
        let code = code(source);
        let lines = code.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
        if lines > FILE_LINES_MAX {
            violations.push(format!(
                "{file} has {lines} lines before its tests, at most {FILE_LINES_MAX}: look for its second noun"
            ));
        }
        for (name, range) in functions(&code) {
            let lines = code[range.clone()].lines().count();
            if lines > FUNCTION_LINES_MAX {
                let at = line_of(&code, range.start);
                violations
                    .push(format!("{file}:{at}: {name} has {lines} lines, at most {FUNCTION_LINES_MAX}: split it"));
            }
        }
    });
    report("These are too long:", &violations);
}

// Words.

/// What no text may contain, in pieces so that this file does not, and why.
fn banned() -> Vec<(String, &'static str)> {
    let work = "finish it now, or write it into an issue";
    let path = "a path of one machine means nothing on another";
    let host = "registries are configured by whoever builds";
    let mut banned: Vec<(String, &str)> =
        [["TO", "DO"], ["FIX", "ME"], ["X", "XX"], ["unimple", "mented!"], ["to", "do!("]]
            .map(|pieces| (pieces.concat(), work))
            .to_vec();
    banned.extend([["/wo", "rk/"], ["/ro", "ot/"], ["/fa", "rm/"]].map(|pieces| (pieces.concat(), path)));
    let hosts = [["index.cra", "tes.io"], ["registry.np", "mjs.org"], ["py", "pi.org"], ["deb.deb", "ian.org"]];
    banned.extend(hosts.map(|pieces| (pieces.concat(), host)));
    banned
}

/// Names of programs that write code: who answers for a change is a person.
fn assistants() -> Vec<String> {
    let pieces = [
        ["clau", "de"],
        ["anth", "ropic"],
        ["cha", "tgpt"],
        ["g", "pt"],
        ["open", "ai"],
        ["cod", "ex"],
        ["co", "pilot"],
        ["gem", "ini"],
        ["aid", "er"],
        ["dev", "in"],
        ["wind", "surf"],
    ];
    pieces.map(|pieces| pieces.concat()).to_vec()
}

/// Whether the text before a match ends the word, path or name that the match begins.
fn begins(text: &str, at: usize, word: &str) -> bool {
    let same = |c: char| is_name(c) || (word.starts_with('/') && matches!(c, '.' | '-' | '}'));
    !text[..at].chars().next_back().is_some_and(same)
}

/// Finds banned words: their lines, themselves, and why they are banned.
fn banned_words(text: &str) -> Vec<(usize, String, &'static str)> {
    let ends = |at: usize| !text[at..].chars().next().is_some_and(is_name);
    let mut found = Vec::new();
    for (word, reason) in banned() {
        let open = !word.ends_with(is_name);
        let places = text.match_indices(&word).map(|(at, _)| at);
        let places = places.filter(|at| begins(text, *at, &word) && (open || ends(at + word.len())));
        found.extend(places.map(|at| (line_of(text, at), word.clone(), reason)));
    }
    let lower = text.to_ascii_lowercase();
    for name in assistants() {
        let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let alone =
            |at: &usize| !letter(lower[..*at].chars().next_back()) && !letter(lower[at + name.len()..].chars().next());
        let places = lower.match_indices(&name).map(|(at, _)| at).filter(alone);
        found.extend(places.map(|at| (line_of(&lower, at), name.clone(), "people answer for what is written")));
    }
    found
}

#[test]
fn no_text_holds_a_banned_word() {
    let mut violations = Vec::new();
    for file in files() {
        for (_, word, reason) in banned_words(&format!("/{file}")) {
            violations.push(format!("{file}: its name holds {word}: {reason}"));
        }
        for (line, word, reason) in banned_words(&text(&file).unwrap_or_default()) {
            violations.push(format!("{file}:{line}: {word}: {reason}"));
        }
    }
    report("These words stay out of the repository:", &violations);
}

#[test]
fn banned_words_are_found_where_they_stand_alone() {
    let count = |text: &str| banned_words(text).len();
    for (word, _) in banned() {
        assert_eq!(count(&format!("a {word} b")), 1, "{word}");
    }
    for name in assistants() {
        assert_eq!((count(&format!("By {}!", name.to_uppercase())), count(&format!("x{name}"))), (1, 0), "{name}");
    }
    let path: String = ["/wo", "rk/"].concat();
    assert_eq!((count(&format!("cd {path}x")), count(&format!("home{path}x"))), (1, 0));
    let marks = "X".repeat(6);
    assert_eq!(count(&format!("name.{marks}")), 0, "a template of mktemp is no mark");
}

// Planted bugs.

/// Says what is wrong with a line that names what builds planted bugs: one script does, and nothing else asks for it.
fn plants(file: &str, line: &str) -> bool {
    let (cfg, wrapper) = (["planted", "_bugs"].concat(), ["rustc-", "planted"].concat());
    let asks = file.ends_with(".rs") && line.trim_start().starts_with("#[cfg(");
    let declares = file == "Cargo.toml" && line.trim_start().starts_with("unexpected_cfgs");
    let sets = file == format!("tests/simulation/{wrapper}");
    let builds = line.contains(&cfg) && !(asks || declares || sets);
    builds || (line.contains(&wrapper) && file != "tests/planted")
}

/// The mistakes that a file of planted bugs lists.
fn planted(source: &str) -> Vec<&str> {
    let list =
        source.split_once("pub enum Bug {").map_or("", |(_, rest)| rest.split_once("\n}").map_or("", |(list, _)| list));
    list.lines().filter_map(|line| line.trim().strip_suffix(',')).filter(|name| name.chars().all(is_name)).collect()
}

#[test]
fn bugs_are_planted_in_one_build_and_each_in_one_place() {
    let mut violations = Vec::new();
    for file in files() {
        let text = text(&file).unwrap_or_default();
        let lines = text.lines().enumerate().filter(|(_, line)| plants(&file, line));
        violations.extend(lines.map(|(at, line)| format!("{file}:{}: {}", at + 1, line.trim())));
    }
    report("Only tests/planted builds bugs on purpose:", &violations);
    let folders = LAYERS.map(|layer| format!("{layer}/src/")).into_iter().chain(["src/".to_owned()]);
    for folder in folders {
        let bugs = text(&format!("{folder}planted.rs")).expect("it is text");
        let mut product = String::new();
        sources(|file, source| {
            if file.starts_with(&folder) {
                product.push_str(source)
            }
        });
        for bug in planted(&bugs) {
            let places = product.matches(&format!("planted!({bug})")).count();
            if places != 1 {
                violations.push(format!("{folder}planted.rs: {bug} has {places} places"));
            }
        }
        assert!(planted(&bugs).len() > 2, "{folder}planted.rs has another shape now: tell this test");
    }
    report("A bug that simulations look for has one place:", &violations);
}

#[test]
fn a_build_that_plants_bugs_is_seen() {
    let (cfg, wrapper) = (["planted", "_bugs"].concat(), ["rustc-", "planted"].concat());
    for (file, line) in [
        (".cargo/config.toml", format!("rustflags = ['--cfg', '{cfg}']")),
        ("build.rs", format!("println!(\"cargo::rustc-cfg={cfg}\");")),
        ("Cargo.toml", format!("{cfg} = []")),
        ("Makefile", format!("RUSTC_WORKSPACE_WRAPPER=tests/simulation/{wrapper} cargo build")),
    ] {
        assert!(plants(file, &line), "{file}: {line}");
    }
    assert!(!plants("src/lib.rs", &format!("#[cfg({cfg})]")));
}

// Unsafe code and names.

#[test]
fn unsafe_code_stays_in_its_boundary_files() {
    let mut violations = Vec::new();
    let mut used = Vec::new();
    sources(|file, source| {
        let code = code(source);
        for at in words(&code, "unsafe") {
            used.push(file.to_owned());
            if !UNSAFE_FILES.contains(&file) {
                let line = line_of(&code, at);
                violations.push(format!("{file}:{line}: move it into a boundary file, or find a safe way"));
            }
        }
    });
    let stale = UNSAFE_FILES.iter().filter(|file| !used.iter().any(|used| used == *file));
    violations.extend(stale.map(|file| format!("{file} is listed, but holds no such code: take it off the list")));
    report("Code that the compiler cannot check belongs into few files:", &violations);
}

/// The words that a name is made of, in lower case.
fn name_words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut joins = false;
    for c in name.chars() {
        match words.last_mut().filter(|_| joins && !c.is_uppercase() && c != '_') {
            Some(word) => word.push(c),
            None if c != '_' => words.push(c.to_lowercase().collect()),
            None => {}
        }
        joins = c != '_';
    }
    words
}

/// Finds declared names that say nothing: their places and themselves.
fn empty_names(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for keyword in ["struct", "enum", "union", "trait", "type", "mod"] {
        for at in words(code, keyword) {
            let name = name_after(code, at + keyword.len());
            let empty = |word: &String| matches!(word.as_str(), "manager" | "handler" | "util" | "utils");
            if name_words(name).iter().any(empty) {
                found.push((at, name.to_owned()));
            }
        }
    }
    for at in words(code, "pub") {
        // Functions and fields; `pub(crate)` is not what others see.
        let rest = code[at + 3..].trim_start();
        let name = rest.split(|c| !is_name(c)).find(|word| !matches!(*word, "const" | "async" | "extern" | "fn" | ""));
        if !rest.starts_with('(') && name.is_some_and(|name| name.starts_with("get_")) {
            found.push((at, name.unwrap_or_default().to_owned()));
        }
    }
    found
}

#[test]
fn names_say_what_a_thing_is() {
    let mut violations = Vec::new();
    sources(|file, source| {
        if is_proof(file) {
            return;
        }
        let code = code(source);
        for (at, name) in empty_names(&code) {
            let line = line_of(&code, at);
            violations.push(format!("{file}:{line}: {name}: name the thing itself, and a getter like its field"));
        }
    });
    report("These names say nothing:", &violations);
}

#[test]
fn empty_names_are_found_where_they_are_declared() {
    let count = |code: &str| empty_names(code).len();
    assert_eq!(count("struct LinkManager; pub trait Handler {} mod utils { pub fn get_x() {} }"), 4);
    assert_eq!(count("impl EventHandler for Events { fn get_x() {} } pub(crate) fn get_y() {}"), 0);
    assert_eq!(count("pub struct Utilization { pub get_z: u8 } pub const fn target() {}"), 1);
}
