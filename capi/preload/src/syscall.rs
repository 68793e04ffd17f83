//! `syscall(2)`: some libraries send and receive datagrams by the numbers of the calls, past the C library's names for
//! them (libuv 1.44 and with it node). Two numbers lead to the calls of this library, all others to the kernel, with
//! nothing in between: neither a register nor the stack looks other than in the C library's own function.

use std::arch::naked_asm;
use std::ffi::{c_int, c_long};

use libc::{mmsghdr, timespec};
use unisockets_calls as calls;

/// What a failed call gives: -1, and the error in `errno`.
extern "C" fn failed(errno: c_int) -> c_long {
    // SAFETY: the C library always has a place for it.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the place is this thread's.
    unsafe { place.write(errno) };
    -1
}

/// # Safety
/// As `sendmmsg(2)` says; the number comes first.
unsafe extern "C" fn send(_: c_long, fd: c_int, messages: *mut mmsghdr, count: u32, flags: c_int) -> c_long {
    // SAFETY: the program has promised what the manual page asks for.
    c_long::from(unsafe { calls::sendmmsg(fd, messages, count, flags) })
}

/// # Safety
/// As `recvmmsg(2)` says; the number comes first.
unsafe extern "C" fn receive(
    _: c_long,
    fd: c_int,
    messages: *mut mmsghdr,
    count: u32,
    flags: c_int,
    timeout: *mut timespec,
) -> c_long {
    // SAFETY: the program has promised what the manual page asks for.
    c_long::from(unsafe { calls::recvmmsg(fd, messages, count, flags, timeout) })
}

/// `syscall(2)`: its arguments, whatever their number, lie where the function's own would.
///
/// # Safety
/// As the manual page says.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(number: c_long) -> c_long {
    naked_asm!(
        "cmp rdi, {sends}",
        "je {send}",
        "cmp rdi, {receives}",
        "je {receive}",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 2f",
        "ret",
        "2:",
        "neg eax",
        "mov edi, eax",
        "jmp {failed}",
        sends = const libc::SYS_sendmmsg,
        receives = const libc::SYS_recvmmsg,
        send = sym send,
        receive = sym receive,
        failed = sym failed,
    )
}

/// `syscall(2)`: its arguments, whatever their number, lie where the function's own would.
///
/// # Safety
/// As the manual page says.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(number: c_long) -> c_long {
    naked_asm!(
        "cmp x0, {sends}",
        "b.eq {send}",
        "cmp x0, {receives}",
        "b.eq {receive}",
        "mov x8, x0",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "mov x4, x5",
        "mov x5, x6",
        "svc 0",
        "cmn x0, 4095",
        "b.hs 2f",
        "ret",
        "2:",
        "neg w0, w0",
        "b {failed}",
        sends = const libc::SYS_sendmmsg,
        receives = const libc::SYS_recvmmsg,
        send = sym send,
        receive = sym receive,
        failed = sym failed,
    )
}
