//! Names and addresses: `getaddrinfo` and its kin. Members' names are asked of the node, everything else of the C
//! library.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::net::{IpAddr, SocketAddr};

use libc::{addrinfo, hostent, sockaddr, socklen_t};
use unisockets_descriptors::{Reply, Request};

use crate::address;
use crate::config::Route;
use crate::node;

/// Functions of the C library that have no system call behind them.
#[derive(Debug, Clone, Copy)]
pub struct System {
    /// `getaddrinfo(3)`.
    pub getaddrinfo: unsafe extern "C" fn(*const c_char, *const c_char, *const addrinfo, *mut *mut addrinfo) -> c_int,
    /// `freeaddrinfo(3)`.
    pub freeaddrinfo: unsafe extern "C" fn(*mut addrinfo),
    /// `getnameinfo(3)`.
    pub getnameinfo: unsafe extern "C" fn(
        *const sockaddr,
        socklen_t,
        *mut c_char,
        socklen_t,
        *mut c_char,
        socklen_t,
        c_int,
    ) -> c_int,
}

impl System {
    /// The functions that this library was linked with.
    pub(crate) fn linked() -> System {
        System { getaddrinfo: libc::getaddrinfo, freeaddrinfo: libc::freeaddrinfo, getnameinfo: libc::getnameinfo }
    }
}

/// Returns whether a name may be a member's: one label, or one that ends in `.internal`.
fn may_be_members(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let is_label = !name.contains('.') && name != "localhost";
    (is_label || name.ends_with(".internal")) && !name.is_empty() && name.parse::<IpAddr>().is_err()
}

unsafe extern "C" {
    /// The C library's `h_errno` of this thread (netdb.h).
    fn __h_errno_location() -> *mut c_int;
}

/// Values of `h_errno` (netdb.h).
const HOST_NOT_FOUND: c_int = 1;
const TRY_AGAIN: c_int = 2;
const NO_RECOVERY: c_int = 3;
const NO_DATA: c_int = 4;
const NETDB_INTERNAL: c_int = -1;
/// A name without an address of that family (netdb.h of the GNU C library).
const EAI_NODATA: c_int = -5;

/// Who has a name.
enum Asked {
    /// The member with these addresses.
    Member(Vec<IpAddr>),
    /// No member has it, or it cannot be a member's, or no network is there.
    Nobody,
    /// Signaling does not answer: a member may have it.
    Unanswered,
}

/// Asks the node who has a name.
fn ask(name: &str) -> Asked {
    if !may_be_members(name) {
        return Asked::Nobody;
    }
    match node::node() {
        Ok(Some(_)) => {}
        Ok(None) => return Asked::Nobody,
        Err(_) => return Asked::Unanswered,
    }
    match node::ask(&Request::Resolve { name: name.to_owned() }) {
        Ok((Reply::Addresses { addresses }, _)) if !addresses.is_empty() => Asked::Member(addresses),
        Ok(_) => Asked::Nobody,
        Err(_) => Asked::Unanswered,
    }
}

/// An entry as the C library makes it, in one piece with its address: the C library frees it, and its name.
#[repr(C)]
struct Entry {
    info: addrinfo,
    address: [u8; address::LEN_MAX],
}

/// Copies the C library's list behind `end`, with another canonical name; false if there is no memory.
///
/// # Safety
/// `list` must be a list of the C library's `getaddrinfo`.
unsafe fn copy(list: *const addrinfo, name: Option<&CStr>, end: &mut *mut *mut addrinfo) -> bool {
    let mut next = list;
    // SAFETY: each entry of the list is valid, or the list is over.
    while let Some(given) = unsafe { next.as_ref() } {
        // SAFETY: the C library gives memory for any type, or null.
        let place = unsafe { libc::malloc(size_of::<Entry>()) }.cast::<Entry>();
        if place.is_null() {
            return false;
        }
        // SAFETY: the place has room for an entry.
        unsafe { place.write(Entry { info: *given, address: [0; address::LEN_MAX] }) };
        // SAFETY: the entry was just made, and is nobody else's yet.
        let made = unsafe { &mut *place };
        let len = (given.ai_addrlen as usize).min(address::LEN_MAX);
        if !given.ai_addr.is_null() {
            // SAFETY: the address has so many bytes.
            unsafe { std::ptr::copy_nonoverlapping(given.ai_addr.cast(), made.address.as_mut_ptr(), len) };
        }
        made.info.ai_addr = made.address.as_mut_ptr().cast();
        if !given.ai_canonname.is_null() {
            let name = name.map_or(given.ai_canonname.cast_const(), CStr::as_ptr);
            // SAFETY: both the given name and the C library's are C strings.
            made.info.ai_canonname = unsafe { libc::strdup(name) };
        }
        made.info.ai_next = std::ptr::null_mut();
        // SAFETY: the end of the list is a place for an entry.
        unsafe { **end = &raw mut made.info };
        *end = &raw mut made.info.ai_next;
        next = given.ai_next;
    }
    true
}

/// `getaddrinfo`.
///
/// # Safety
/// The arguments must be what `getaddrinfo(3)` wants.
pub(crate) unsafe fn getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> c_int {
    let system = crate::system::system();
    // SAFETY: the node's name is null or a C string.
    let name = (!node.is_null()).then(|| unsafe { CStr::from_ptr(node) });
    // SAFETY: the hints are null or valid.
    let wanted = unsafe { hints.as_ref() };
    let numeric = wanted.is_some_and(|hints| hints.ai_flags & libc::AI_NUMERICHOST != 0);
    let family = wanted.map_or(libc::AF_UNSPEC, |hints| hints.ai_family);
    let is_known = [libc::AF_UNSPEC, libc::AF_INET, libc::AF_INET6].contains(&family);
    let asked = match name.and_then(|name| name.to_str().ok()) {
        Some(name) if !numeric && is_known => ask(name),
        _ => Asked::Nobody,
    };
    let (addresses, may_come) = match asked {
        Asked::Member(addresses) => (addresses, false),
        Asked::Nobody => (Vec::new(), false),
        Asked::Unanswered => (Vec::new(), true),
    };
    if addresses.is_empty() {
        // SAFETY: the arguments are the program's.
        return match unsafe { (system.getaddrinfo)(node, service, hints, result) } {
            libc::EAI_NONAME if may_come => libc::EAI_AGAIN,
            code => code,
        };
    }
    // Which families this machine has addresses of says nothing about the network, which has both.
    // SAFETY: a structure of zeros wants nothing special.
    let mut own: addrinfo = unsafe { std::mem::zeroed() };
    match wanted {
        Some(hints) => own = addrinfo { ai_flags: hints.ai_flags & !libc::AI_ADDRCONFIG, ..*hints },
        // The C library's own choice for whoever has none, less the same (getaddrinfo(3)).
        None => own.ai_flags = libc::AI_V4MAPPED,
    }
    let hints = &raw const own;
    let mut head: *mut addrinfo = std::ptr::null_mut();
    let mut end: *mut *mut addrinfo = &raw mut head;
    let mut last = libc::EAI_NONAME;
    for address in addresses {
        let text = CString::new(address.to_string()).expect("an address has no zero byte");
        let mut list = std::ptr::null_mut();
        // SAFETY: the service and the hints are the program's.
        let code = unsafe { (system.getaddrinfo)(text.as_ptr(), service, hints, &raw mut list) };
        if code != 0 {
            // The other family, for one: the hints want one of them only.
            last = code;
            continue;
        }
        // SAFETY: the list is the C library's.
        let copied = unsafe { copy(list, name, &mut end) };
        // SAFETY: the list is the C library's, and is not used again.
        unsafe { (system.freeaddrinfo)(list) };
        if !copied {
            // SAFETY: what is there of the list is as the C library makes it.
            unsafe { free(head) };
            return libc::EAI_MEMORY;
        }
    }
    if head.is_null() {
        return if last == libc::EAI_FAMILY { libc::EAI_NONAME } else { last };
    }
    // SAFETY: the program has given a place for the list.
    unsafe { *result = head };
    0
}

/// Remembers what a result of `getaddrinfo` or `getnameinfo` means, as `gai_strerror(3)` has it, and returns it.
pub(crate) fn told(code: c_int) -> c_int {
    if code != 0 && code != libc::EAI_SYSTEM && !node::has_said() {
        // SAFETY: any number has a text.
        let text = unsafe { libc::gai_strerror(code) };
        // SAFETY: it is a C string that is always there.
        node::remember(&unsafe { CStr::from_ptr(text) }.to_string_lossy());
    }
    code
}

/// `freeaddrinfo`.
///
/// # Safety
/// `list` must be null or a list of `getaddrinfo`, this one's or the C library's, that was not freed yet.
pub(crate) unsafe fn free(list: *mut addrinfo) {
    if !list.is_null() {
        // SAFETY: both are made alike: functions of the C library that look up names call their own.
        unsafe { (crate::system::system().freeaddrinfo)(list) };
    }
}

/// `getnameinfo`.
///
/// # Safety
/// The arguments must be what `getnameinfo(3)` wants.
pub(crate) unsafe fn getnameinfo(
    from: (*const sockaddr, socklen_t),
    host: (*mut c_char, socklen_t),
    service: (*mut c_char, socklen_t),
    flags: c_int,
) -> c_int {
    let system = crate::system::system();
    let plain = |host: (*mut c_char, socklen_t), flags| {
        // SAFETY: the arguments are the program's, some perhaps left out.
        unsafe { (system.getnameinfo)(from.0, from.1, host.0, host.1, service.0, service.1, flags) }
    };
    // SAFETY: the address is as long as it says.
    let address = unsafe { address::read(from.0, from.1) };
    let Ok(Some(address)) = address else {
        return plain(host, flags);
    };
    let wants_host = !host.0.is_null() && host.1 > 0 && flags & libc::NI_NUMERICHOST == 0;
    let of_network = matches!(node::node(), Ok(Some(node)) if node.routes.connect(address.ip()) == Route::Network);
    if !wants_host || !of_network || address.ip().to_canonical().is_loopback() {
        return plain(host, flags);
    }
    let name = match node::ask(&Request::Reverse { address: address.ip().to_canonical() }) {
        Ok((Reply::Name { name: Some(name) }, _)) => name,
        // The C library would ask the world's name servers about an address that is not the world's.
        _ if flags & libc::NI_NAMEREQD != 0 => return libc::EAI_NONAME,
        _ => return plain(host, flags | libc::NI_NUMERICHOST),
    };
    if name.len() >= host.1 as usize {
        return libc::EAI_OVERFLOW;
    }
    // SAFETY: the place has room for the name.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), host.0.cast(), name.len()) };
    // SAFETY: and for the zero behind it.
    let end = unsafe { host.0.add(name.len()) };
    // SAFETY: see above.
    unsafe { *end = 0 };
    if service.0.is_null() {
        return 0;
    }
    plain((std::ptr::null_mut(), 0), flags)
}

/// What the last `gethostbyname` of a thread gave, which stays until the next (gethostbyname(3)).
struct Host {
    entry: hostent,
    _name: CString,
    _addresses: Vec<[u8; 4]>,
    _pointers: Vec<*mut c_char>,
}

thread_local! {
    static HOST: RefCell<Option<Box<Host>>> = const { RefCell::new(None) };
}

/// `gethostbyname`: IPv4 only, as the call always was.
///
/// # Safety
/// `name` must be a C string.
pub(crate) unsafe fn gethostbyname(name: *const c_char) -> *mut hostent {
    // SAFETY: a structure of zeros wants nothing special.
    let mut hints: addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_family = libc::AF_INET;
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut list = std::ptr::null_mut();
    let code = match name.is_null() {
        true => libc::EAI_NONAME,
        // SAFETY: the name is the program's; the rest is made here.
        false => told(unsafe { getaddrinfo(name, std::ptr::null(), &raw const hints, &raw mut list) }),
    };
    if code != 0 {
        let error = match code {
            libc::EAI_AGAIN => TRY_AGAIN,
            libc::EAI_FAIL => NO_RECOVERY,
            EAI_NODATA => NO_DATA,
            libc::EAI_SYSTEM | libc::EAI_MEMORY => NETDB_INTERNAL,
            _ => HOST_NOT_FOUND,
        };
        // SAFETY: the C library always has a place for it.
        let place = unsafe { __h_errno_location() };
        // SAFETY: the place is this thread's.
        unsafe { place.write(error) };
        return std::ptr::null_mut();
    }
    let mut addresses = Vec::new();
    let mut next = list;
    // SAFETY: the list is valid, and not freed yet.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: the address is as long as it says.
        if let Ok(Some(SocketAddr::V4(address))) = unsafe { address::read(entry.ai_addr, entry.ai_addrlen) } {
            addresses.push(address.ip().octets());
        }
        next = entry.ai_next;
    }
    // SAFETY: the list is not used again.
    unsafe { free(list) };
    // SAFETY: the program has promised that it is a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    // Pointers to the addresses, a null, and the null of an empty list of aliases.
    let mut pointers: Vec<*mut c_char> = addresses.iter_mut().map(|address| address.as_mut_ptr().cast()).collect();
    pointers.extend([std::ptr::null_mut(), std::ptr::null_mut()]);
    let last = pointers.len() - 1;
    let entry = hostent {
        h_name: name.as_ptr().cast_mut(),
        h_aliases: (&raw mut pointers[last]).cast(),
        h_addrtype: libc::AF_INET,
        h_length: 4,
        h_addr_list: pointers.as_mut_ptr(),
    };
    let mut host = Box::new(Host { entry, _name: name, _addresses: addresses, _pointers: pointers });
    let place = &raw mut host.entry;
    if let Err(_ending) = HOST.try_with(|last| last.replace(Some(host))) {
        // A thread that is ending has no place to keep it in.
        return std::ptr::null_mut();
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_world_are_not_asked_of_the_network() {
        for name in ["alpha", "alpha.home.internal", "alpha.home.internal."] {
            assert!(may_be_members(name), "{name}");
        }
        for name in ["localhost", "www.example.com", "10.80.0.1", "::1", "", "."] {
            assert!(!may_be_members(name), "{name}");
        }
    }
}
