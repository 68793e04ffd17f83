//! The commands, one file each, and what they share: options, exit codes, signals.

mod args;
mod bench;
mod channel;
mod control;
mod demo;
mod exit;
mod forward;
mod init;
mod interface;
mod isolate;
mod key;
mod listen;
mod namespace;
mod namespaced;
mod nc;
mod node;
mod output;
mod ping;
mod run;
mod serve;
mod servers;
mod signal;
mod status;
mod transfer;
mod up;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;
use unisockets::Node;

use args::{Command, Common, Options};
use exit::Failure;

/// Runs the tool.
pub(crate) fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_new(&options.log).unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A log that nobody reads any more is no reason to say so where nobody reads.
    logging.with_ansi(colours).with_target(false).log_internal_errors(false).init();
    if let Command::Init(command) = &options.command {
        return ended(init::run(command));
    }
    // One thread: the hops between stack, link and sockets are the cost, not the work between them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the operating system gives a runtime its descriptors");
    let result = runtime.block_on(run(options));
    // A read of standard input may still hang in a thread of its own.
    runtime.shutdown_background();
    ended(result)
}

/// Says how the tool has ended.
fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            failure.code()
        }
    }
}

async fn run(options: Options) -> Result<(), Failure> {
    match options.command {
        Command::Signal(command) => signal::run(command).await,
        Command::Node(command) => node::run(command).await,
        Command::Run(command) => run::run(&command).await,
        Command::Up(command) => up::up(command).await,
        Command::Down => up::down(),
        // It has no tasks: `main` has run it.
        Command::Init(_) => Ok(()),
        Command::Nc(command) => nc::run(command).await,
        Command::Ping(command) => ping::run(command).await,
        Command::Forward(command) => forward::forward(command).await,
        Command::Expose(command) => forward::expose(command).await,
        Command::Serve(command) => serve::run(command).await,
        Command::Send(command) => transfer::send(command).await,
        Command::Recv(command) => transfer::recv(command).await,
        Command::Bench(command) => bench::run(command).await,
        Command::Status(command) => status::run(command).await,
        Command::Key(command) => key::run(command),
        Command::Demo(command) => demo::run(command).await,
        Command::Manual { directory } => manual(&directory),
        Command::Completions { shell } => completions(shell),
    }
}

/// Writes the man pages, made from the same definition as `--help`.
fn manual(directory: &std::path::Path) -> Result<(), Failure> {
    let written =
        std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Options::command(), directory));
    written.map_err(|error| Failure::failed(format!("cannot write into {}: {error}", directory.display())))
}

/// Prints completions, made from the same definition as `--help`.
fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Options::command(), "unisockets", &mut text);
    output::write(&text)
}

/// Joins the network with a command's options, runs it until it ends or is interrupted, and leaves.
async fn with_node<F, Fut>(common: &Common, f: F) -> Result<(), Failure>
where
    F: FnOnce(Node) -> Fut,
    Fut: Future<Output = Result<(), Failure>>,
{
    let config = common.config()?;
    let joining = async { Node::join(config).await.map_err(Failure::from) };
    let node = tokio::select! {
        node = joining => node?,
        interrupted = exit::interrupted() => return Err(interrupted),
    };
    let control = control::serve(&node);
    let result = tokio::select! {
        result = f(node.clone()) => result,
        interrupted = exit::interrupted() => Err(interrupted),
    };
    drop(control);
    // What was sent is delivered first, which a peer can delay; whoever asks twice does not want to wait for it.
    tokio::select! {
        () = node.leave() => result,
        interrupted = exit::interrupted() => result.and(Err(interrupted)),
    }
}
