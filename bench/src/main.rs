//! Measures what `bench/README.md` lists, prints it and writes `bench/results.json`.
//!
//! Ratios come from runs that alternate in one go, and are medians: the machine may be shared and noisy.

mod c;
mod lanes;
mod load;
mod members;
mod node;
mod peers;
mod processes;
mod programs;
mod rows;
mod stack;
mod tab;
mod wire;

use std::process::ExitCode;

use serde::Serialize;

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    id: &'static str,
    value: f64,
    unit: &'static str,
    reach: String,
    met: bool,
}

/// Whether a figure should be at least, at most or exactly so much.
#[derive(Debug, Clone, Copy)]
enum Reach {
    AtLeast(f64),
    AtMost(f64),
    Same(f64),
}

impl Row {
    fn new(id: &'static str, value: f64, unit: &'static str, reach: Reach) -> Row {
        let (text, met) = match reach {
            Reach::AtLeast(limit) => (format!(">= {limit}"), value >= limit),
            Reach::AtMost(limit) => (format!("<= {limit}"), value <= limit),
            Reach::Same(limit) => (format!("= {limit}"), value == limit),
        };
        Row { id, value, unit, reach: text, met }
    }
}

fn report(error: &processes::Failure) -> ExitCode {
    eprintln!("{error}");
    ExitCode::FAILURE
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.first().is_some_and(|first| first == "unix-echo") {
        return processes::unix_echo(&wanted[1]);
    }
    if let [first, url, name] = &wanted[..]
        && first == "node"
    {
        return node::run(url, name);
    }
    if wanted.first().is_some_and(|first| first == "idle-connections") {
        return if stack::print_idle_bytes().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let [first, conditions, count] = &wanted[..]
        && first == "dials"
    {
        let result = count.parse().map_err(processes::Failure::from).and_then(|count| wire::dials(conditions, count));
        return result.map_or_else(|error| report(&error), |()| ExitCode::SUCCESS);
    }
    if wanted.first().is_some_and(|first| first == "lanes") {
        return lanes::run(&wanted[1..]);
    }
    let wants = |id: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == id);
    let mut table = Vec::new();
    let mut failed = false;
    for (ids, measure) in rows::ALL {
        if !ids.iter().any(|id| wants(id)) {
            continue;
        }
        match measure() {
            Ok(rows) => {
                for row in &rows {
                    let mark = if row.met { "met" } else { "not met" };
                    println!("{:<22} {:>10.3} {:<8} {:<10} {mark}", row.id, row.value, row.unit, row.reach);
                }
                table.extend(rows);
            }
            Err(error) => {
                eprintln!("{}: {error}", ids.join(", "));
                failed = true;
            }
        }
    }
    let text = serde_json::to_string_pretty(&table).expect("a table has a JSON form");
    if let Err(error) = std::fs::write("bench/results.json", text) {
        eprintln!("bench/results.json: {error}");
        failed = true;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
