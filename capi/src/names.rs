//! Names and addresses.

use std::ffi::{c_char, c_int};

use libc::{addrinfo, hostent, sockaddr, socklen_t};
use unisockets_calls as calls;

/// Finds addresses (getaddrinfo(3)): of members for one label (`alpha`) and for names that end in `.internal`, of
/// everything else from the C library. Only unisockets_freeaddrinfo may free the list.
///
/// Errors: EAI_NONAME and the others of getaddrinfo(3).
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getaddrinfo(node, service, hints, result) }
}

/// Frees a list of unisockets_getaddrinfo.
///
/// # Safety
/// `list` must be null or come from `unisockets_getaddrinfo`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_freeaddrinfo(list: *mut addrinfo) {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::freeaddrinfo(list) }
}

/// Finds the name of an address (getnameinfo(3)): a member's is its name on the network.
///
/// Errors: EAI_NONAME, EAI_OVERFLOW and the others of getnameinfo(3).
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_getnameinfo(
    address: *const sockaddr,
    len: socklen_t,
    host: *mut c_char,
    host_len: socklen_t,
    service: *mut c_char,
    service_len: socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::getnameinfo(address, len, host, host_len, service, service_len, flags) }
}

/// Finds the IPv4 addresses of a name (gethostbyname(3)); the result stays until the thread's next call.
///
/// Errors: null; h_errno says why.
///
/// # Safety
/// What it points to must be as the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unisockets_gethostbyname(name: *const c_char) -> *mut hostent {
    // SAFETY: the program has promised what the manual page asks for.
    unsafe { calls::gethostbyname(name) }
}
