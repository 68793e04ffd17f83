//! What a program's namespace and its node say to each other: short messages over a pair of sockets.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::SocketType;
use tokio::io::unix::AsyncFd;
use unisockets_descriptors::passing;

/// Longest message.
const MESSAGE_LEN_MAX: usize = 16 * 1024;

/// One end; the other end sees when the last copy of this one is closed, however its holder ended.
#[derive(Debug)]
pub(super) struct Channel(pub(super) OwnedFd);

/// A message, and a descriptor that came along.
pub(super) type Message = (Vec<u8>, Option<OwnedFd>);

impl Channel {
    pub(super) fn pair() -> io::Result<(Channel, Channel)> {
        let (one, other) = passing::unix_pair(SocketType::SEQPACKET)?;
        Ok((Channel(one), Channel(other)))
    }

    pub(super) fn send(&self, message: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
        passing::send_with(&self.0, message, descriptor).map(|_| ())
    }

    /// Waits for a message; nothing when the other end is closed.
    pub(super) fn receive(&self) -> io::Result<Option<Message>> {
        loop {
            let mut wanted = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut wanted, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            match self.receive_now() {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                result => return result,
            }
        }
    }

    fn receive_now(&self) -> io::Result<Option<Message>> {
        let mut message = vec![0; MESSAGE_LEN_MAX];
        match passing::recv_with(&self.0, &mut message) {
            Ok((0, None)) => Ok(None),
            Ok((len, descriptor)) => {
                message.truncate(len);
                Ok(Some((message, descriptor)))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps this end open in a program that is started next; returns its number there.
    pub(super) fn inherit(&self) -> io::Result<i32> {
        rustix::io::fcntl_setfd(&self.0, rustix::io::FdFlags::empty())?;
        Ok(self.0.as_raw_fd())
    }
}

/// An end that tasks wait for.
#[derive(Debug)]
pub(super) struct AsyncChannel(AsyncFd<Channel>);

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsyncChannel {
    pub(super) fn new(channel: Channel) -> io::Result<AsyncChannel> {
        rustix::io::ioctl_fionbio(channel.0.as_fd(), true)?;
        Ok(AsyncChannel(super::isolate::watch(channel)?))
    }

    pub(super) async fn send(&self, message: &[u8]) -> io::Result<()> {
        self.0.async_io(tokio::io::Interest::WRITABLE, |channel| channel.send(message, None)).await
    }

    pub(super) async fn receive(&self) -> io::Result<Option<Message>> {
        self.0.async_io(tokio::io::Interest::READABLE, Channel::receive_now).await
    }
}
