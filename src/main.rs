//! The command-line tool: `unisockets --help` teaches it.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
