//! The node that holds this program's sockets: found, started, asked.
//!
//! Each request has a connection of its own. One that was kept would not survive `fork`, a program that closes every
//! descriptor it does not know, or another thread.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, OsString};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use unisockets_descriptors::passing::{self, Place};
use unisockets_descriptors::{About, Answer, Name, Reply, Request};

use crate::config::{self, Config, Routes};
use crate::system::{self, Errno};

/// A node that answers.
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) routes: Routes,
    /// Which node it is, in the names of its sockets.
    instance: u64,
    /// The process that has started it; nothing if it was there before.
    owner: Option<u32>,
    /// What it was found or started with, as far as that is known: completed by what it says of itself.
    settings: Config,
}

impl Node {
    fn new(place: Place, is_own: bool, found: Config, about: About) -> Node {
        let routes = Routes::new(&about);
        let network = about.network.split('~').next().map(str::to_owned);
        let instance = about.instance;
        let owner = is_own.then(std::process::id);
        Node { place, routes, instance, owner, settings: Config { network, name: about.name, ..found } }
    }

    /// Whether nobody is there any more to answer.
    fn is_gone(&self) -> bool {
        let refused = |error: &std::io::Error| matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOENT));
        passing::ask(&self.place, &Request::About).is_err_and(|error| refused(&error))
    }

    /// Asks this node.
    ///
    /// # Errors
    /// The node's; ENETDOWN if it does not answer.
    pub(crate) fn ask(&self, request: &Request) -> Result<(Reply, Option<OwnedFd>), Errno> {
        ask_at(&self.place, request)
    }

    /// Checks that settings, as far as they say anything, are those of this node.
    ///
    /// # Errors
    /// EISCONN; the text of [`last`] says what differs.
    fn check(&self, wanted: &Config) -> Result<(), Errno> {
        let own = &self.settings;
        let pairs = [
            ("signaling server", &own.signal, &wanted.signal),
            ("network", &own.network, &wanted.network),
            ("secret", &own.secret, &wanted.secret),
            ("name", &own.name, &wanted.name),
            ("node", &own.node, &wanted.node),
        ];
        let differs = |what: &str, own: &Option<String>, wanted: &Option<String>| match (own, wanted) {
            (_, None) => false,
            // Of another program's node the server and the secret are not known. A member without a name is another one
            // than that which is wanted.
            (None, Some(_)) => self.owner.is_some() || what == "name",
            (Some(own), Some(wanted)) if ["network", "name"].contains(&what) => !own.eq_ignore_ascii_case(wanted),
            (Some(own), Some(wanted)) => own != wanted,
        };
        match pairs.into_iter().find(|(what, own, wanted)| differs(what, own, wanted)) {
            None => Ok(()),
            Some((what, ..)) => {
                let text =
                    format!("this program is on a network already, with another {what}; unisockets_down leaves it");
                Err(failed(&text, libc::EISCONN))
            }
        }
    }
}

/// What is known of this program's node.
pub(crate) enum Known {
    /// Nobody has asked yet.
    Nothing,
    /// No network is set: everything goes to the operating system.
    None,
    There(Arc<Node>),
}

/// The node, and those that this program has left, the oldest first: sockets of theirs may be open still.
pub(crate) struct Nodes {
    known: Known,
    left: Vec<Arc<Node>>,
}

/// Nodes that are remembered after they were left.
const LEFT_MAX: usize = 16;

static NODES: RwLock<Nodes> = RwLock::new(Nodes { known: Known::Nothing, left: Vec::new() });
/// The process of which a thread looks for a node or starts one, so that two threads do not start two; 0 if none does. A
/// child finds its parent's number here, and nobody who would ever take it away.
static STARTER: AtomicU32 = AtomicU32::new(0);
/// How often a thread looks whether another has found the node.
const STARTER_PAUSE: Duration = Duration::from_millis(2);

/// What has the node to itself.
pub(crate) type Guard = RwLockWriteGuard<'static, Nodes>;

/// Keeps every other thread from the node that is known; nobody has it for long.
pub(crate) fn hold() -> Guard {
    NODES.write().unwrap_or_else(PoisonError::into_inner)
}

fn nodes() -> RwLockReadGuard<'static, Nodes> {
    NODES.read().unwrap_or_else(PoisonError::into_inner)
}

/// The right to start a node.
struct Starter;

impl Starter {
    /// Waits until no other thread of this process is about to start one.
    fn wait() -> Starter {
        let own = std::process::id();
        loop {
            let starter = STARTER.load(Ordering::Acquire);
            if starter == own {
                std::thread::sleep(STARTER_PAUSE);
            } else if STARTER.compare_exchange(starter, own, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Starter;
            }
        }
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        STARTER.store(0, Ordering::Release);
    }
}

/// Whether a node that is not there is said aloud, and whether it was.
static REPORTS: AtomicBool = AtomicBool::new(false);
static REPORTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
    /// Whether the call that runs has said why it fails.
    static SAID: Cell<bool> = const { Cell::new(false) };
    /// The number of the last failure, if nothing more was said of it.
    static NUMBER: Cell<Errno> = const { Cell::new(0) };
}

/// Begins a call, which has said nothing yet.
pub(crate) fn begin() {
    let _ = SAID.try_with(|said| said.set(false));
}

/// Whether the call that runs has said why it fails.
pub(crate) fn has_said() -> bool {
    SAID.try_with(Cell::get).unwrap_or(true)
}

/// Ends a call that has failed: what it has not said is what its number means.
pub(crate) fn failed_with(errno: Errno) {
    if !has_said() {
        let _ = NUMBER.try_with(|number| number.set(errno));
    }
}

/// Remembers what to say about the last failure of this thread.
pub(crate) fn remember(text: &str) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // A thread that is ending has no place for it: destructors and handlers at exit make calls, too.
    let _ = LAST.try_with(|last| last.replace(text));
    let _ = SAID.try_with(|said| said.set(true));
    let _ = NUMBER.try_with(|number| number.set(0));
}

/// Calls `f` with what is to be said about the last failure of this thread.
pub(crate) fn last<R>(f: impl Fn(&CStr) -> R) -> R {
    let number = NUMBER.try_with(Cell::take).unwrap_or(0);
    if number != 0 {
        remember(&std::io::Error::from_raw_os_error(number).to_string());
    }
    LAST.try_with(|last| f(&last.borrow())).unwrap_or_else(|_| f(c""))
}

fn failed(text: &str, errno: Errno) -> Errno {
    remember(text);
    errno
}

/// Returns this program's node, started if need be; nothing if no network is set.
///
/// # Errors
/// ENETDOWN if there should be one and is not; the text of [`last`] says why.
pub(crate) fn node() -> Result<Option<Arc<Node>>, Errno> {
    match &nodes().known {
        Known::There(node) => return Ok(Some(Arc::clone(node))),
        Known::None => return Ok(None),
        Known::Nothing => {}
    }
    if !config::is_set() {
        hold().known = Known::None;
        return Ok(None);
    }
    let found = up(&Config::default());
    if found.is_err() && REPORTS.load(Ordering::Relaxed) && !REPORTED.swap(true, Ordering::Relaxed) {
        // Whoever runs a program that knows nothing of the network would only see "Network is down".
        last(|text| eprintln!("unisockets: {}", text.to_string_lossy()));
    }
    found.map(Some)
}

/// Says aloud, once, why there is no node.
pub fn report_failures() {
    REPORTS.store(true, Ordering::Relaxed);
}

/// Finds or starts the node that the settings name, and uses it from now on.
///
/// # Errors
/// ENETDOWN; the text of [`last`] says why.
pub(crate) fn up(config: &Config) -> Result<Arc<Node>, Errno> {
    let _only = Starter::wait();
    let known = if let Known::There(node) = &nodes().known { Some(Arc::clone(node)) } else { None };
    if let Some(node) = known {
        if !node.is_gone() {
            return node.check(config).map(|()| node);
        }
        // It was killed, or another process has ended it: what follows does not find it.
        forget(&node);
        hold().known = Known::Nothing;
    }
    let (is_own, found) = match config.node.clone().or_else(|| config::variable(config::NODE)) {
        Some(node) => (false, Config { node: Some(node), ..Config::default() }),
        None => (true, Config { node: Some(start(config)?), ..config.or_variables() }),
    };
    let place = Place::new(found.node.as_deref().unwrap_or_default());
    let about = match ask_at(&place, &Request::About)?.0 {
        Reply::About(about) => about,
        _ => return Err(failed("the node is of another version", libc::EPROTO)),
    };
    let node = Arc::new(Node::new(place, is_own, found, about));
    hold().known = Known::There(Arc::clone(&node));
    // What differs can be left, for it is known now.
    node.check(config).map(|()| node)
}

/// Leaves the node of this program; the next call finds or starts another. One that this program has started ends once
/// its sockets have drained, another one goes on for its other programs.
pub(crate) fn down() -> Result<(), Errno> {
    let before = {
        let mut nodes = hold();
        let before = std::mem::replace(&mut nodes.known, Known::Nothing);
        if let Known::There(node) = &before {
            if nodes.left.len() == LEFT_MAX {
                nodes.left.remove(0);
            }
            nodes.left.push(Arc::clone(node));
        }
        before
    };
    match before {
        Known::There(node) => {
            // It drains, and is nobody's any more: what follows does not find it.
            forget(&node);
            // A child has its parent's knowledge, but the node is still the parent's.
            if node.owner == Some(std::process::id()) {
                return node.ask(&Request::Leave).map(|_| ());
            }
            // What it cannot be told it learns when this program ends.
            let _ = node.ask(&Request::Forget);
            Ok(())
        }
        Known::Nothing | Known::None => Err(failed("no node was up", libc::ENETDOWN)),
    }
}

/// Takes a node out of what programs that are started from here find.
fn forget(node: &Node) {
    if config::variable(config::NODE) == node.settings.node {
        system::unset_variable(config::NODE);
    }
}

/// Asks this program's node.
///
/// # Errors
/// The node's; ENETDOWN if there is none.
pub(crate) fn ask(request: &Request) -> Result<(Reply, Option<OwnedFd>), Errno> {
    let node = node()?.ok_or_else(|| {
        failed("no network is set: call unisockets_up, or set UNISOCKETS_SIGNAL or UNISOCKETS_NODE", libc::ENETDOWN)
    })?;
    ask_at(&node.place, request)
}

/// Finds the node that holds a socket: this program's, or one that it has left.
///
/// # Errors
/// ENETDOWN if it is another one, as of a descriptor that was inherited from a program on another network.
pub(crate) fn of(name: &Name) -> Result<Arc<Node>, Errno> {
    let is_its = |node: &&Arc<Node>| node.instance == name.instance;
    let found = {
        let nodes = nodes();
        let current = if let Known::There(node) = &nodes.known { Some(node) } else { None };
        current.filter(is_its).or_else(|| nodes.left.iter().find(is_its)).map(Arc::clone)
    };
    let node = match found {
        Some(node) => Some(node),
        None => node()?,
    };
    node.filter(|node| is_its(&node)).ok_or_else(|| failed("this socket is of another node", libc::ENETDOWN))
}

/// Asks the node that holds a socket.
///
/// # Errors
/// The node's, and those of [`of`].
pub(crate) fn ask_of(name: &Name, request: &Request) -> Result<(Reply, Option<OwnedFd>), Errno> {
    ask_at(&of(name)?.place, request)
}

fn ask_at(place: &Place, request: &Request) -> Result<(Reply, Option<OwnedFd>), Errno> {
    match passing::ask(place, request) {
        Ok((Answer::Done(reply), descriptor)) => Ok((reply, descriptor)),
        Ok((Answer::Failed(fault), _)) => Err(failed(&fault.text, fault.errno)),
        Err(error) => {
            let errno = match error.raw_os_error() {
                // The program is out of descriptors or memory: that is not the network's fault.
                Some(errno @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => errno,
                _ => libc::ENETDOWN,
            };
            Err(failed(&format!("the node at {} does not answer: {error}", place.address()), errno))
        }
    }
}

/// How the line begins that says what goes into UNISOCKETS_NODE.
const INVITATION: &str = "invitation ";

/// Finds the program that nodes are started with.
fn program() -> PathBuf {
    if let Some(program) = config::variable(config::PROGRAM) {
        return PathBuf::from(program);
    }
    let path = std::env::var_os("PATH").filter(|_| !system::is_privileged()).unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("unisockets")).find(|file| file.is_file());
    found.unwrap_or_else(|| PathBuf::from("/usr/local/bin/unisockets"))
}

/// Starts a node that follows this process, and returns where it answers.
fn start(config: &Config) -> Result<String, Errno> {
    let program = program();
    let said = launch(&program, config)?;
    match said.lines().find_map(|line| line.strip_prefix(INVITATION)) {
        Some(invitation) => {
            // Programs that this one starts share its node.
            system::set_variable(config::NODE, invitation);
            Ok(invitation.to_owned())
        }
        None => {
            let reason = if said.trim().is_empty() {
                format!("{} could not be started; put it on PATH, or set UNISOCKETS_PROGRAM", program.display())
            } else {
                said.trim().to_owned()
            };
            Err(failed(&reason, libc::ENETDOWN))
        }
    }
}

/// Runs the program and returns what it said; it leaves a node in the background.
fn launch(program: &Path, config: &Config) -> Result<String, Errno> {
    let (reader, writer) = std::io::pipe().map_err(|error| error.raw_os_error().unwrap_or(libc::EMFILE))?;
    let strings = |items: Vec<OsString>| -> Vec<CString> {
        items.into_iter().filter_map(|item| CString::new(item.into_vec()).ok()).collect()
    };
    let pid = std::process::id().to_string();
    let arguments = ["unisockets", "node", "--background", "--linger", "--follow", &pid];
    let arguments = strings(arguments.iter().map(OsString::from).collect());
    let set = [
        (config::SIGNAL, &config.signal),
        (config::NETWORK, &config.network),
        (config::SECRET, &config.secret),
        (config::NAME, &config.name),
    ];
    let is_set = |name: &OsString| set.iter().any(|(known, value)| name == known && value.is_some());
    // What is preloaded into this program is not for the node.
    let privileged = system::is_privileged();
    let inherited = std::env::vars_os().filter(|(name, _)| !privileged && name != "LD_PRELOAD" && !is_set(name));
    let given = set.iter().filter_map(|(name, value)| Some((OsString::from(name), OsString::from(value.as_ref()?))));
    let environment = inherited.chain(given).map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let environment = strings(environment.collect());
    let path = strings(vec![program.as_os_str().to_owned()]);
    let path = path.first().ok_or(libc::ENOENT)?;
    // Of a program without standard input and output the pipe would have their numbers.
    let output = system::fcntl_int(writer.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3)?;
    let child = system::spawn_unseen(path, &arguments, &environment, output);
    system::close(output);
    let child = child?;
    drop(writer);
    let mut said = String::new();
    let mut reader = BufReader::new(reader);
    // A child of another thread may hold the other end of this: the last line is the end, too.
    while reader.read_line(&mut said).is_ok_and(|len| len > 0) {
        if said.lines().last().is_some_and(|line| line.starts_with(INVITATION)) {
            break;
        }
    }
    system::wait(child);
    Ok(said)
}
