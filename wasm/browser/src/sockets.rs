//! Berkeley's calls on the stack, by number: none waits, and `Host.ready` says when to call again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use unisockets_stack::{Error, Family, Kind, Readiness, Shutdown, SocketId, SocketOption};
use wasm_bindgen::prelude::*;

use crate::{Core, at, fail, refuse};

/// Most bytes that one receive returns.
const RECEIVE_MAX: usize = 256 * 1024;
/// What calls return instead of a number where they would have to wait (EAGAIN).
const AGAIN: i32 = -1;

/// The sockets that the page holds, by the numbers that it knows them by.
#[derive(Default)]
pub(crate) struct Sockets {
    ids: HashMap<u32, SocketId>,
    numbers: HashMap<SocketId, u32>,
    last: u32,
    received: Vec<u8>,
}

impl Sockets {
    fn add(&mut self, id: SocketId) -> u32 {
        // Numbers are used again only after all others: a stale one names no socket.
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if !self.ids.contains_key(&self.last) {
                break;
            }
        }
        self.ids.insert(self.last, id);
        self.numbers.insert(id, self.last);
        self.last
    }

    fn get(&self, number: u32) -> Result<SocketId, JsValue> {
        self.ids.get(&number).copied().ok_or_else(|| thrown(Error::BadSocket))
    }

    fn remove(&mut self, number: u32) -> Option<SocketId> {
        let id = self.ids.remove(&number)?;
        self.numbers.remove(&id);
        Some(id)
    }
}

fn thrown(error: Error) -> JsValue {
    fail(error.name(), &error.to_string())
}

fn address_of(text: &str) -> Result<SocketAddr, JsValue> {
    text.parse()
        .map_err(|_| refuse(&format!("'{text}' is no address; it looks like 10.80.0.1:80 or [fd75:6e69::1]:80")))
}

fn family_of(address: SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// A datagram, and where it came from.
#[wasm_bindgen]
pub struct Datagram {
    data: js_sys::Uint8Array,
    remote: SocketAddr,
    hop_limit: u8,
}

#[wasm_bindgen]
impl Datagram {
    /// Its payload.
    #[wasm_bindgen(getter)]
    pub fn data(&self) -> js_sys::Uint8Array {
        self.data.clone()
    }

    /// Who sent it: address and port.
    #[wasm_bindgen(getter)]
    pub fn remote(&self) -> String {
        self.remote.to_string()
    }

    /// The hop limit it arrived with.
    #[wasm_bindgen(getter, js_name = hopLimit)]
    pub fn hop_limit(&self) -> u8 {
        self.hop_limit
    }
}

#[wasm_bindgen]
impl Core {
    /// Makes a TCP socket and begins to connect it; it is writable, or has an error, when that has ended.
    #[wasm_bindgen(js_name = tcpConnect)]
    pub fn tcp_connect(&mut self, now_us: f64, remote: &str) -> Result<u32, JsValue> {
        let (now, remote) = (at(now_us), address_of(remote)?);
        let id = self.node.stack.socket(Kind::Tcp, family_of(remote)).map_err(thrown)?;
        match self.node.stack.connect(now, id, remote) {
            Ok(()) | Err(Error::InProgress) => {}
            Err(error) => {
                self.node.stack.close(now, id);
                return Err(thrown(error));
            }
        }
        let number = self.sockets.add(id);
        self.settle(now);
        Ok(number)
    }

    /// Makes a TCP socket that listens.
    #[wasm_bindgen(js_name = tcpListen)]
    pub fn tcp_listen(&mut self, now_us: f64, local: &str, backlog: usize, only_v6: bool) -> Result<u32, JsValue> {
        let (now, local) = (at(now_us), address_of(local)?);
        let stack = &mut self.node.stack;
        let id = stack.socket(Kind::Tcp, family_of(local)).map_err(thrown)?;
        let made = (|| {
            if local.is_ipv6() {
                stack.set_option(id, SocketOption::V6Only(only_v6))?;
            }
            stack.bind(id, local)?;
            stack.listen(id, backlog)
        })();
        if let Err(error) = made {
            self.node.stack.close(now, id);
            return Err(thrown(error));
        }
        Ok(self.sockets.add(id))
    }

    /// Takes the next connection of a listener, if one waits.
    pub fn accept(&mut self, now_us: f64, listener: u32) -> Result<Option<u32>, JsValue> {
        let now = at(now_us);
        let id = self.sockets.get(listener)?;
        let accepted = match self.node.stack.accept(now, id) {
            Ok((accepted, _)) => accepted,
            Err(Error::Again | Error::ConnectionAborted) => return Ok(None),
            Err(error) => return Err(thrown(error)),
        };
        let number = self.sockets.add(accepted);
        self.settle(now);
        Ok(Some(number))
    }

    /// Returns the error that ended a connection or an attempt to make one, once.
    #[wasm_bindgen(js_name = takeError)]
    pub fn take_error(&mut self, socket: u32) -> Result<(), JsValue> {
        let id = self.sockets.get(socket)?;
        match self.node.stack.take_error(id).map_err(thrown)? {
            Some(error) => Err(thrown(error)),
            None => Ok(()),
        }
    }

    /// Returns whether a connection is made; throws what ended the attempt.
    #[wasm_bindgen(js_name = isConnected)]
    pub fn is_connected(&mut self, socket: u32) -> Result<bool, JsValue> {
        self.take_error(socket)?;
        let id = self.sockets.get(socket)?;
        Ok(self.node.stack.readiness(id).contains(Readiness::WRITABLE) && self.node.stack.peer_address(id).is_ok())
    }

    /// Returns whether a connection is over both ways, or has failed: nobody takes what is sent.
    #[wasm_bindgen(js_name = isOver)]
    pub fn is_over(&self, socket: u32) -> Result<bool, JsValue> {
        let readiness = self.node.stack.readiness(self.sockets.get(socket)?);
        Ok(readiness.contains(Readiness::ERROR) || readiness.contains(Readiness::HANG_UP))
    }

    /// Sends on a connection; returns how many bytes were taken, or -1 where it would have to wait.
    pub fn send(&mut self, now_us: f64, socket: u32, data: &[u8]) -> Result<i32, JsValue> {
        let (now, id) = (at(now_us), self.sockets.get(socket)?);
        let sent = match self.node.stack.send(now, id, data) {
            Ok(len) => i32::try_from(len).unwrap_or(i32::MAX),
            Err(Error::Again) => AGAIN,
            Err(error) => return Err(thrown(error)),
        };
        self.settle(now);
        Ok(sent)
    }

    /// Receives from a connection; returns how many bytes stand at `receivedAt`, 0 at the end of the stream, or -1 where it
    /// would have to wait.
    pub fn recv(&mut self, now_us: f64, socket: u32, most: usize) -> Result<i32, JsValue> {
        let id = self.sockets.get(socket)?;
        self.sockets.received.resize(RECEIVE_MAX, 0);
        let received = match self.node.stack.recv(id, &mut self.sockets.received[..most.min(RECEIVE_MAX)]) {
            Ok(len) => Ok(len as i32),
            Err(Error::Again) => Ok(AGAIN),
            Err(error) => Err(thrown(error)),
        };
        self.settle(at(now_us));
        received
    }

    /// Returns where in the module's memory the bytes stand that were received last.
    #[wasm_bindgen(js_name = receivedAt)]
    pub fn received_at(&self) -> *const u8 {
        self.sockets.received.as_ptr()
    }

    /// Shuts one direction, or both: 0 reading, 1 writing, 2 both.
    pub fn shutdown(&mut self, now_us: f64, socket: u32, how: u8) -> Result<(), JsValue> {
        let (now, id) = (at(now_us), self.sockets.get(socket)?);
        let how = match how {
            0 => Shutdown::Read,
            1 => Shutdown::Write,
            2 => Shutdown::Both,
            _ => return Err(refuse("a socket is shut for reading (0), writing (1) or both (2)")),
        };
        let result = self.node.stack.shutdown(now, id, how).map_err(thrown);
        self.settle(now);
        result
    }

    /// Closes a socket; with `reset` its connection is reset.
    pub fn close(&mut self, now_us: f64, socket: u32, reset: bool) {
        let now = at(now_us);
        if let Some(id) = self.sockets.remove(socket) {
            if reset {
                // A socket that has no such option has nothing to reset.
                let _ = self.node.stack.set_option(id, SocketOption::Linger(Some(Duration::ZERO)));
            }
            self.node.stack.close(now, id);
        }
        self.settle(now);
    }

    /// Makes a UDP socket.
    #[wasm_bindgen(js_name = udpBind)]
    pub fn udp_bind(&mut self, now_us: f64, local: &str, only_v6: bool) -> Result<u32, JsValue> {
        self.bound(now_us, Kind::Udp, address_of(local)?, only_v6)
    }

    /// Makes a socket for echo requests (ICMP); its datagrams begin with a sequence number of 16 bits.
    #[wasm_bindgen(js_name = echoBind)]
    pub fn echo_bind(&mut self, now_us: f64, v6: bool) -> Result<u32, JsValue> {
        self.bound(now_us, Kind::Echo, address_of(if v6 { "[::]:0" } else { "0.0.0.0:0" })?, v6)
    }

    /// Connects a UDP socket.
    #[wasm_bindgen(js_name = udpConnect)]
    pub fn udp_connect(&mut self, now_us: f64, socket: u32, remote: &str) -> Result<(), JsValue> {
        let id = self.sockets.get(socket)?;
        self.node.stack.connect(at(now_us), id, address_of(remote)?).map_err(thrown)
    }

    /// Sends a datagram; returns its length, or -1 where it would have to wait.
    #[wasm_bindgen(js_name = sendTo)]
    pub fn send_to(&mut self, now_us: f64, socket: u32, data: &[u8], remote: Option<String>) -> Result<i32, JsValue> {
        let (now, id) = (at(now_us), self.sockets.get(socket)?);
        let remote = remote.map(|text| address_of(&text)).transpose()?;
        let sent = match self.node.stack.send_to(now, id, data, remote) {
            Ok(len) => i32::try_from(len).unwrap_or(i32::MAX),
            Err(Error::Again) => AGAIN,
            Err(error) => return Err(thrown(error)),
        };
        self.settle(now);
        Ok(sent)
    }

    /// Receives a datagram, if one waits.
    #[wasm_bindgen(js_name = recvFrom)]
    pub fn recv_from(&mut self, socket: u32) -> Result<Option<Datagram>, JsValue> {
        let id = self.sockets.get(socket)?;
        match self.node.stack.recv_from(id) {
            Ok(received) => Ok(Some(Datagram {
                data: js_sys::Uint8Array::from(&received.data[..]),
                remote: received.source,
                hop_limit: received.hop_limit,
            })),
            Err(Error::Again) => Ok(None),
            Err(error) => Err(thrown(error)),
        }
    }

    /// Sets an option: `noDelay` and `keepAlive` of TCP, `broadcast` of UDP, `hopLimit`, `receiveBuffer`, `sendBuffer`.
    #[wasm_bindgen(js_name = setOption)]
    pub fn set_option(&mut self, socket: u32, name: &str, value: f64) -> Result<(), JsValue> {
        let id = self.sockets.get(socket)?;
        let option = match name {
            "noDelay" => SocketOption::NoDelay(value != 0.0),
            "keepAlive" => SocketOption::KeepAlive(value != 0.0),
            "keepIdle" => SocketOption::KeepIdle(Duration::from_millis(value as u64)),
            "broadcast" => SocketOption::Broadcast(value != 0.0),
            "hopLimit" => SocketOption::HopLimit(value as u8),
            "receiveBuffer" => SocketOption::ReceiveBuffer(value as usize),
            "sendBuffer" => SocketOption::SendBuffer(value as usize),
            _ => return Err(fail("ENOPROTOOPT", &format!("no socket has an option '{name}'"))),
        };
        self.node.stack.set_option(id, option).map_err(thrown)
    }

    /// Returns the address and port of a socket's own end.
    #[wasm_bindgen(js_name = localAddress)]
    pub fn local_address(&self, socket: u32) -> Result<String, JsValue> {
        let address = self.node.stack.local_address(self.sockets.get(socket)?).map_err(thrown)?;
        Ok(address.to_string())
    }

    /// Returns the address and port of the other end.
    #[wasm_bindgen(js_name = remoteAddress)]
    pub fn remote_address(&self, socket: u32) -> Result<String, JsValue> {
        let address = self.node.stack.peer_address(self.sockets.get(socket)?).map_err(thrown)?;
        Ok(address.to_string())
    }
}

impl Core {
    fn bound(&mut self, now_us: f64, kind: Kind, local: SocketAddr, only_v6: bool) -> Result<u32, JsValue> {
        let stack = &mut self.node.stack;
        let id = stack.socket(kind, family_of(local)).map_err(thrown)?;
        let made = (|| {
            if local.is_ipv6() && kind == Kind::Udp {
                stack.set_option(id, SocketOption::V6Only(only_v6))?;
            }
            stack.bind(id, local)
        })();
        if let Err(error) = made {
            self.node.stack.close(at(now_us), id);
            return Err(thrown(error));
        }
        Ok(self.sockets.add(id))
    }

    /// Tells the page what a socket can do now.
    pub(crate) fn announce(&self, id: SocketId) {
        let Some(number) = self.sockets.numbers.get(&id) else {
            return;
        };
        let readiness = self.node.stack.readiness(id);
        let either = Readiness::ERROR | Readiness::HANG_UP;
        let read = readiness.intersects(Readiness::READABLE | Readiness::READ_CLOSED | either);
        let write = readiness.intersects(Readiness::WRITABLE | either);
        if read || write {
            self.host.ready(*number, read, write);
        }
    }
}
