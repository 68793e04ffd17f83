//! Namespaces of the kernel: network, mounts, processes, and users where nobody else may make the others.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{
    CapabilitySet, UnshareFlags, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    set_capabilities, unshare_unsafe,
};
use tokio::io::unix::AsyncFd;

use super::channel::Channel;

/// Makes children wait for this process: where it was started with SIGCHLD ignored, they would be gone before anybody asked
/// how they ended (wait(2)). Programs that are started find the signal as it is by default.
pub(super) fn hear_of_children() -> io::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGCHLD, Arc::default()).map(|_| ())
}

/// What a program's own world consists of.
const WORLD: UnshareFlags = UnshareFlags::NEWNET.union(UnshareFlags::NEWNS).union(UnshareFlags::NEWPID);

/// Takes a descriptor that this process was started with.
pub(super) fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the command that started this one left it open under this number, for this one owner.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// Closes everything that this process was started with but its standard streams and some: what is the program's ends
/// with the program, a lock or the end of a pipe.
pub(super) fn close_inherited(but: [i32; 2]) {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    // The folder that is being read is open, too, and closed afterwards.
    let is_inherited = |path: &std::path::Path| std::fs::read_link(path).is_ok_and(|to| !to.starts_with("/proc"));
    let paths: Vec<_> = open.flatten().map(|entry| entry.path()).filter(|path| is_inherited(path)).collect();
    let numbers = paths.iter().filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| !but.contains(number)) {
        drop(inherited(number));
    }
}

/// Has a command start with its standard streams only.
pub(super) fn without_inherited(command: &mut Command) {
    let close = || {
        let (first, last) = (libc::c_ulong::from(3u8), libc::c_ulong::from(u32::MAX));
        let flags = libc::c_ulong::from(libc::CLOSE_RANGE_CLOEXEC);
        // SAFETY: the call only marks descriptors, and may be made between fork and exec. A kernel before 5.11 does not
        // know it: there they stay.
        let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
        Ok(())
    };
    // SAFETY: what is called allocates nothing and takes no lock.
    unsafe { command.pre_exec(close) };
}

/// Lets tasks wait for a channel.
pub(super) fn watch(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    // SAFETY: a channel owns its descriptor and never puts another into its place.
    Ok(unsafe { AsyncFd::register(channel) }?)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: of these namespaces, none takes descriptors or memory away from other code of this process.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// Puts this process into network, mount and user namespaces of its own, and its next child into one of processes.
///
/// # Errors
/// EPERM, ENOSPC or EINVAL where the kernel's settings do not allow it.
pub(super) fn enter() -> io::Result<()> {
    // Whoever may do everything keeps all its users.
    if unshare(WORLD).is_err() {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        unshare(WORLD | UnshareFlags::NEWUSER)?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    }
    // What is mounted here is not mounted for others; what others mount is seen here.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    // Every port is the program's own: no other user's programs are here.
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    Ok(())
}

/// Puts a text in the place of a file, for this mount namespace; a file that is not there stays away.
pub(super) fn replace_file(path: &str, text: &str) -> io::Result<()> {
    if !std::path::Path::new(path).exists() {
        return Ok(());
    }
    let place = std::env::temp_dir().join(format!("unisockets-{}-{}", std::process::id(), text.len()));
    std::fs::File::create_new(&place)?;
    // Programs that give their rights up read it too.
    std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let replaced = std::fs::write(&place, text).and_then(|()| Ok(mount_bind(&place, path)?));
    // What is mounted stays there without its name.
    let _ = std::fs::remove_file(&place);
    replaced
}

/// Lets the next program that this process starts mount, where it is not root's.
pub(super) fn keep_mount_capability() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    if !sets.permitted.contains(CapabilitySet::SYS_ADMIN) {
        return Ok(());
    }
    sets.inheritable |= CapabilitySet::SYS_ADMIN;
    set_capabilities(None, sets)?;
    Ok(configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)?)
}

/// Takes back what [`keep_mount_capability`] gave: programs get what their user has.
pub(super) fn drop_capabilities() -> io::Result<()> {
    clear_ambient_capability_set()?;
    let mut sets = capabilities(None)?;
    sets.inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, sets)?)
}

/// Mounts the table of this namespace's processes.
pub(super) fn mount_proc() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("proc", "/proc", "proc", flags, None)?)
}
