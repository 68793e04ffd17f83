//! A TUN device: a kernel's side of the network, read and written by two tasks.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Updater, ioctl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, yield_now};
use unisockets_link::frame;

use super::segments::{VNET_LEN, cut, join};
use super::{Inbound, Open};
use crate::driver::Driver;
use crate::handle::Node;

/// TUNSETIFF, an interface for a descriptor (linux/if_tun.h).
const SET_INTERFACE: u32 = 0x4004_54ca;
/// TUNSETOFFLOAD, what the reader of a device can do itself.
const SET_OFFLOAD: u32 = 0x4004_54d0;
const INTERFACE_LEN: usize = 40;
const NAME_LEN: usize = 16;
/// IFF_TUN, IFF_NO_PI and IFF_VNET_HDR.
const FLAGS: u16 = 0x0001 | 0x1000 | 0x4000;
/// TUN_F_CSUM, TUN_F_TSO4 and TUN_F_TSO6.
const OFFLOADS: usize = 0x01 | 0x02 | 0x04;
/// The longest read: a super-segment of 64 KiB behind its header.
const READ_LEN: usize = 65_536 + VNET_LEN;
/// What is waited for: packets, or that the device is taken away.
const NEWS: Interest = Interest::READABLE.add(Interest::ERROR);
/// Bytes that are read before those that were read go on their way.
const BURST: usize = 64 * 1024;
/// Parts of one write.
const PARTS_MAX: usize = 64;

/// A TUN device that a node can be given, with the headers and offloads that it wants.
#[derive(Debug)]
pub struct Tun {
    descriptor: OwnedFd,
}

impl Tun {
    /// Makes a device in the network namespace of the calling thread; it is gone when the descriptor is closed.
    ///
    /// # Errors
    /// Those of `/dev/net/tun`: EACCES or EPERM without the right to, ENOENT where the kernel has no such driver, EBUSY
    /// if the name is taken, EINVAL if it is empty or longer than 15 bytes.
    pub fn create(name: &str) -> io::Result<Tun> {
        if name.is_empty() || name.len() >= NAME_LEN {
            return Err(io::Error::from_raw_os_error(Errno::INVAL.raw_os_error()));
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let descriptor = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let mut request = [0; INTERFACE_LEN];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[NAME_LEN..NAME_LEN + 2].copy_from_slice(&FLAGS.to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which has 40 bytes on 64-bit machines and fewer on others.
        let interface = unsafe { Updater::<SET_INTERFACE, _>::new(&mut request) };
        // SAFETY: the descriptor is one of /dev/net/tun, and the request is its own.
        unsafe { ioctl(&descriptor, interface) }?;
        // SAFETY: TUNSETOFFLOAD takes a number.
        let offload = unsafe { IntegerSetter::<SET_OFFLOAD>::new_usize(OFFLOADS) };
        // SAFETY: as above.
        unsafe { ioctl(&descriptor, offload) }?;
        Ok(Tun { descriptor })
    }

    /// Takes a device that [`Tun::create`] made in another process.
    pub fn from_descriptor(descriptor: OwnedFd) -> Tun {
        Tun { descriptor }
    }

    /// Returns the descriptor, to be handed to another process.
    pub fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }
}

/// A device in use by a node; dropping it takes the device away, as soon as the runtime's tasks get to run.
#[derive(Debug)]
pub struct Attached {
    driver: Weak<Driver>,
    tasks: [JoinHandle<()>; 2],
    ended: Arc<Notify>,
}

impl Attached {
    /// Waits until the device can be used no more: it was taken away, or what serves it has failed.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }
}

/// Tells, however its task ends.
struct Farewell(Arc<Notify>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.upgrade() {
            driver.with(|state, _, _| state.core.detach_device());
        }
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Node {
    /// Gives the node's addresses to the kernel behind a TUN device: its sockets are then on the network, and those of
    /// this node are not. With `open`, peers reach only these ports of it, and what answers it.
    ///
    /// The device needs the node's addresses and an MTU of [`Node::TUN_MTU`].
    ///
    /// # Errors
    /// Those of watching a descriptor (`epoll_ctl(2)`).
    pub fn attach(&self, tun: Tun, open: Option<Vec<Open>>) -> io::Result<Attached> {
        let inbound = Arc::new(Inbound::default());
        let driver = self.driver();
        let _entered = driver.runtime().enter();
        // SAFETY: an owned descriptor keeps its number, and its description stays open, as long as the `AsyncFd` has it.
        let device = unsafe { AsyncFd::register_with_interest(tun.descriptor, NEWS) }?;
        let device = Arc::new(device);
        driver.with(|state, now, _| state.core.attach_device(now, Arc::clone(&inbound), open));
        let ended = Arc::new(Notify::new());
        let farewell = || Farewell(Arc::clone(&ended));
        let (reads, writes) = (farewell(), farewell());
        let (weak, reading) = (Arc::downgrade(driver), Arc::clone(&device));
        let reader = tokio::spawn(async move {
            let _reads = reads;
            read(weak, &reading).await;
        });
        let writer = tokio::spawn(async move {
            let _writes = writes;
            write(&device, &inbound).await;
        });
        Ok(Attached { driver: Arc::downgrade(driver), tasks: [reader, writer], ended })
    }

    /// Whether packets of a device still wait for their link.
    pub fn device_waits(&self) -> bool {
        self.driver().look(|state| state.core.device_waits())
    }

    /// The MTU that a device of [`Node::attach`] should have, in bytes.
    pub const TUN_MTU: usize = unisockets_link::MTU;
}

/// Takes what the kernel sends, until the node or the device is gone.
async fn read(driver: Weak<Driver>, device: &AsyncFd<OwnedFd>) {
    let mut buffer = vec![0; READ_LEN];
    let mut packets = Vec::new();
    loop {
        let Ok(mut ready) = device.ready(NEWS).await else {
            return;
        };
        // This is said once, and perhaps before a read says so, too.
        let mut over = ready.ready().is_error();
        let mut bytes = 0;
        while bytes < BURST {
            let len = match ready.try_io(|device| Ok(rustix::io::read(device, &mut buffer)?)) {
                Ok(Ok(len @ 1..)) => len,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) => {
                    over = true;
                    break;
                }
                // There is no more.
                Err(_) => break,
            };
            bytes += len;
            if !cut(&buffer[..len], |packet| packets.push(packet)) {
                tracing::debug!(len, "the device gave what is no packet");
            }
        }
        let Some(driver) = driver.upgrade() else {
            return;
        };
        driver.with(|state, now, _| {
            for packet in packets.drain(..) {
                state.core.send_from_device(now, packet);
            }
        });
        if over {
            return;
        }
        if bytes >= BURST {
            yield_now().await;
        }
    }
}

/// Hands the kernel what peers send.
async fn write(device: &AsyncFd<OwnedFd>, inbound: &Inbound) {
    let mut bytes = Vec::new();
    while poll_fn(|cx| inbound.poll_take(cx, &mut bytes)).await {
        let packets: Vec<&[u8]> = frame::packets(&bytes).map_while(Result::ok).collect();
        let mut rest = packets.as_slice();
        while let Some((joined, count)) = join(&rest[..rest.len().min(PARTS_MAX)]) {
            let mut slices = vec![IoSlice::new(&joined.head)];
            slices.extend(joined.parts.iter().map(|part| IoSlice::new(part)));
            while let Err(error) = rustix::io::writev(device, &slices) {
                match error {
                    Errno::INTR => {}
                    // It is down, or has no memory: the packet is lost, as on any wire.
                    Errno::IO | Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INVAL => break,
                    _ => return,
                }
            }
            rest = &rest[count..];
        }
    }
}
