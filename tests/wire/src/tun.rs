//! A TUN device in a namespace: IP packets of its kernel as this process sees them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::Namespace;

/// Packets that the kernel keeps for a reader that is busy: none is lost here, only on the wire.
const QUEUE_LEN: u32 = 20_000;
/// Largest IP packet, in bytes.
const PACKET_LEN_MAX: usize = 65_535;

/// A TUN device; it is gone when this is dropped.
pub struct Tun {
    device: SyncDevice,
    name: String,
}

impl AsFd for Tun {
    /// Readable while a packet waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Tun {
    /// Makes a device without addresses inside a namespace, sets its MTU in bytes and brings it up.
    ///
    /// # Errors
    /// Those of `/dev/net/tun` and of `ip`.
    pub fn new(namespace: &Namespace, name: &str, mtu: usize) -> io::Result<Tun> {
        let named = name.to_owned();
        let device = namespace.run(move || {
            // It belongs to the namespace of the thread that makes it.
            DeviceBuilder::new().name(named).layer(Layer::L3).enable(false).build_sync()
        })?;
        device.set_nonblocking(true)?;
        let tun = Tun { device, name: name.to_owned() };
        // Nothing but what programs send: no link-local address, so no router solicitations.
        namespace.ip(&format!(
            "link set {name} addrgenmode none\nlink set {name} mtu {mtu} txqueuelen {QUEUE_LEN}\nlink set {name} up"
        ))?;
        Ok(tun)
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the next packet that the kernel sends and returns its length.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while there is none.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.device.recv(buffer)
    }

    /// Hands a packet to the kernel.
    ///
    /// # Errors
    /// `EIO` while the device is down, `EINVAL` for what is no IP packet.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.device.send(packet).map(drop)
    }
}

/// A buffer that takes packets out of a device.
pub struct Batch {
    buffer: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { buffer: vec![0; PACKET_LEN_MAX] }
    }
}

impl Batch {
    /// Calls `each` with up to `limit` packets that wait; returns how many there were.
    ///
    /// # Errors
    /// Those of the device, none for having nothing.
    pub fn take(&mut self, tun: &Tun, limit: usize, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        for taken in 0..limit {
            match tun.recv(&mut self.buffer) {
                Ok(len) => each(&self.buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(limit)
    }
}
