//! Programs in C over descriptors, each with a node of its own, against the tool, whose sockets are in its own process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::processes::{Failure, Process, median, program, signal};
use crate::rows::{ROUNDS, bench, figure};
use crate::{Reach, Row};

/// Bytes of a stream.
const BYTES: u64 = 256 << 20;
/// Round trips, and pairs of runs of them.
const ROUND_TRIPS: u32 = 5_000;
const PAIRS: usize = 21;
/// Connections, sixteen at a time.
const CONNECTIONS: &str = "8000";

/// Two members, each a node in a process of its own, and a server of ours in C on one of them.
struct Members {
    folder: PathBuf,
    client: String,
    _processes: Vec<Process>,
}

impl Members {
    fn new(url: &str) -> Result<Members, Failure> {
        let folder = std::env::temp_dir().join(format!("unisockets-bench-c-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        compile(&folder)?;
        let mut members = Members { folder, client: String::new(), _processes: Vec::new() };
        let mut controls = Vec::new();
        for name in ["c-server", "c-client"] {
            let path = |suffix: &str| members.folder.join(format!("{name}{suffix}")).to_string_lossy().into_owned();
            let (control, key) = (path(""), path(".key"));
            let node = ["node", "--name", name, "--signal", url, "--key", &key, "--control", &control];
            let mut node = Process::tool(&node)?;
            node.line()?;
            members._processes.push(node);
            controls.push(control);
        }
        let mut server = members.start(&controls[0], &["serve"])?;
        server.line()?;
        // It ends before its node does.
        members._processes.insert(0, server);
        members.client = controls.remove(1);
        Ok(members)
    }

    fn start(&self, control: &str, words: &[&str]) -> Result<Process, Failure> {
        let mut command = Command::new("env");
        command.arg(format!("UNISOCKETS_NODE={control}")).arg(self.folder.join("sockets")).args(words);
        Process::of(&command, Stdio::inherit())
    }

    fn measure(&self, what: &str, count: &str) -> Result<f64, Failure> {
        figure(&self.start(&self.client, &[what, "c-server", count])?.rest()?, &["figure"])
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn compile(folder: &Path) -> Result<(), Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no repository")?;
    let library = program("libunisockets.so")?;
    std::os::unix::fs::symlink(&library, folder.join("libunisockets.so.0"))?;
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-O2", "-DUNISOCKETS_WITH_ALIAS", "-I"]).arg(root.join("capi/include"));
    compiler.arg("-o").arg(folder.join("sockets")).arg(root.join("bench/c/sockets.c")).arg("-pthread");
    compiler.arg("-L").arg(library.parent().ok_or("no folder")?).arg("-lunisockets");
    compiler.arg(format!("-Wl,-rpath,{}", folder.display()));
    if compiler.status()?.success() { Ok(()) } else { Err("the program in C does not compile".into()) }
}

pub(crate) fn stream() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let members = Members::new(&url)?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let c = members.measure("stream", &BYTES.to_string())?;
        let rust = figure(&bench(&url, BYTES, 100, &[])?, &["up_mb_per_s"])?;
        eprintln!("  round {}: C {c:.1} MB/s, Rust {rust:.1} MB/s", round + 1);
        ratios.push(c / rust);
    }
    Ok(vec![Row::new("c_vs_rust", median(ratios), "ratio", Reach::AtLeast(0.95))])
}

pub(crate) fn round_trip() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let members = Members::new(&url)?;
    let (mut ratios, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let c = members.measure("echo", &ROUND_TRIPS.to_string())?;
        let rust = figure(&bench(&url, 1 << 20, ROUND_TRIPS, &[])?, &["round_trip_us", "p50"])?;
        ratios.push(c / rust);
        ours.push((c, rust));
    }
    let (c, rust): (Vec<f64>, Vec<f64>) = ours.into_iter().unzip();
    eprintln!("  medians: C {:.1} us, Rust {:.1} us", median(c), median(rust));
    Ok(vec![Row::new("c_round_trip_vs_rust", median(ratios), "ratio", Reach::AtMost(1.25))])
}

pub(crate) fn connects() -> Result<Vec<Row>, Failure> {
    let (_signal, url) = signal()?;
    let members = Members::new(&url)?;
    let mut figures = Vec::new();
    for round in 0..ROUNDS {
        let figure = members.measure("connect", CONNECTIONS)?;
        eprintln!("  round {}: {figure:.0} connections/s", round + 1);
        figures.push(figure);
    }
    Ok(vec![Row::new("connect_per_s_c", median(figures), "1/s", Reach::AtLeast(2_000.0))])
}
