//! A tab of Chromium, against raw data channels of the same browser.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::processes::{Failure, program};
use crate::rows::figure;
use crate::{Reach, Row};

/// Has the browser's own script measure.
pub(crate) fn all() -> Result<Vec<Row>, Failure> {
    let script = Path::new("wasm/browser/test/bench.mjs");
    if !Path::new("wasm/browser/site/index.html").is_file() {
        return Err("the page is not built: make page".into());
    }
    let output = as_people_do("node")
        .arg(script)
        .env("UNISOCKETS_TOOL", program("unisockets")?)
        .env("UNISOCKETS_RAW_CHANNEL", program("examples/raw_channel")?)
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err("the browser's measurements failed; its text above says why".into());
    }
    let rows = [
        ("tab_to_native_vs_raw", "ratio", Reach::AtLeast(0.8)),
        ("native_to_tab_vs_raw", "ratio", Reach::AtLeast(0.8)),
        ("tab_echo_extra_us", "us", Reach::AtMost(500.0)),
        ("wasm_gzip_kib", "KiB", Reach::AtMost(250.0)),
        ("tab_join_first_byte_s", "s", Reach::AtMost(2.5)),
        ("tab_main_thread_block_ms", "ms", Reach::AtMost(16.0)),
    ];
    rows.into_iter().map(|(id, unit, reach)| Ok(Row::new(id, figure(&text, &[id])?, unit, reach))).collect()
}

/// Runs a program without the right to raise priorities, which browsers do not have where people use them: started by root
/// Chromium puts its network threads before its pages' (nice -8), and a page waits for them.
fn as_people_do(program: &str) -> Command {
    let lowered = ["--bounding-set=-sys_nice", "--inh-caps=-sys_nice"];
    if Command::new("setpriv")
        .args(lowered)
        .arg("true")
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        let mut command = Command::new("setpriv");
        command.args(lowered).arg(program);
        return command;
    }
    Command::new(program)
}
