//! The network itself.

use std::ffi::{CStr, c_char, c_int};

use unisockets_calls as calls;

/// The settings of unisockets_up. A null pointer takes what the environment says: UNISOCKETS_SIGNAL,
/// UNISOCKETS_NETWORK, UNISOCKETS_SECRET, UNISOCKETS_NAME, UNISOCKETS_NODE. Set it to zeros first.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct unisockets_config {
    /// The signaling server: ws://HOST:PORT or wss://HOST.
    pub signal: *const c_char,
    /// The network's name.
    pub network: *const c_char,
    /// The network's secret.
    pub secret: *const c_char,
    /// This member's name, which keeps its addresses.
    pub name: *const c_char,
    /// The control socket of a node that runs already; the others are not looked at then.
    pub node: *const c_char,
}

/// Longest of the settings, in bytes.
const LEN_MAX: usize = 4_096;

/// Reads a string of the settings; what is wrong with it is a sentence.
fn text(what: &str, pointer: *const c_char) -> Result<Option<String>, String> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the program has promised that each is null or a C string.
    let given = unsafe { CStr::from_ptr(pointer) };
    match given.to_str() {
        Ok(_) if given.count_bytes() > LEN_MAX => Err(format!("the {what} is longer than {LEN_MAX} bytes")),
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(format!("the {what} is not UTF-8; give it as that")),
    }
}

/// Reads the settings.
fn settings(config: &unisockets_config) -> Result<calls::Config, String> {
    Ok(calls::Config {
        signal: text("signaling URL", config.signal)?,
        network: text("network's name", config.network)?,
        secret: text("secret", config.secret)?,
        name: text("member's name", config.name)?,
        node: text("node's control socket", config.node)?,
    })
}

/// Joins a network: finds the node of the settings, or starts one in a process of its own, which outlives fork, exec and
/// the end of this process until its last descriptor has drained. A null pointer means the environment alone. Without
/// this call the first call that needs a network does the same, if the environment names one.
///
/// Errors: -1 and ENETDOWN; EISCONN, the program is on a network with other settings; EINVAL, a string is not UTF-8, or longer
/// than 4,096 bytes. unisockets_errmsg() says why.
///
/// # Safety
/// `config` must be null or valid, and its strings null or C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_up(config: *const unisockets_config) -> c_int {
    // SAFETY: the program has promised it.
    match unsafe { config.as_ref() }.map(settings).transpose() {
        Ok(settings) => calls::up(&settings.unwrap_or_default()),
        Err(why) => calls::refuse(&why),
    }
}

/// Leaves the network: a node that this program has started ends once every socket has drained, any other goes on for the
/// programs that share it.
///
/// Errors: -1 and ENETDOWN, it was not up.
#[unsafe(no_mangle)]
pub extern "C" fn unisockets_down() -> c_int {
    calls::down()
}

/// Returns the node's status as a JSON object: its addresses, peers, paths, sockets and counters. It is valid until the
/// thread's next call.
///
/// Errors: null and ENETDOWN.
#[unsafe(no_mangle)]
pub extern "C" fn unisockets_status() -> *const c_char {
    calls::status()
}

/// Returns the library's version; UNISOCKETS_VERSION is that of the header.
#[unsafe(no_mangle)]
pub extern "C" fn unisockets_version() -> *const c_char {
    calls::version()
}

/// Returns a sentence about the thread's last failure, for people. It is valid until the thread's next call.
#[unsafe(no_mangle)]
pub extern "C" fn unisockets_errmsg() -> *const c_char {
    calls::errmsg()
}

/// Writes every packet of the node from now on to a file in the pcapng format; null ends that.
///
/// Errors: -1 and those of creating the file.
///
/// # Safety
/// `path` must be null or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_capture(path: *const c_char) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::capture(path) }
}
