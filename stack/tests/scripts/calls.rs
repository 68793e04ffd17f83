//! The program of a script: its calls on sockets, and what they give.

use std::net::SocketAddr;

use unisockets_stack::{Error, Kind, Readiness, Shutdown, SocketId, SocketOption};

use super::bytes;
use super::language::{self, ACK, Call, Segment};
use super::run::{PEER_PORT, TURNS_MAX, World, compare_as, stream};

/// A socket of a script, with its place in both streams.
#[derive(Clone, Copy)]
pub struct Named {
    id: SocketId,
    sent: u32,
    received: u32,
}

impl World<'_> {
    fn socket(&self, name: &str) -> Result<Named, String> {
        self.sockets.get(name).copied().ok_or_else(|| format!("no socket has the name {name}"))
    }

    pub(super) fn call(&mut self, name: &str, call: &Call, result: Option<&str>) -> Result<(), String> {
        let outcome = match call {
            Call::Socket => {
                let id = self.stack.socket(Kind::Tcp, self.family).map_err(|error| format!("{error:?}"))?;
                self.sockets.insert(name.to_owned(), Named { id, sent: 0, received: 0 });
                "ok".to_owned()
            }
            _ => self.call_on(name, call)?,
        };
        let wanted = match (result, call) {
            (Some(result), _) => result,
            (None, Call::State(_) | Call::Ready(_) | Call::Pump(_) | Call::PumpToWrap(_)) => return Ok(()),
            (None, _) => "ok",
        };
        self.trace.push(format!("{:.6} {name}: {call:?} = {outcome}", self.now.as_micros() as f64 / 1e6 - 1.0));
        compare_as("result", wanted, outcome.as_str())
    }

    fn call_on(&mut self, name: &str, call: &Call) -> Result<String, String> {
        let socket = self.socket(name)?;
        let (now, own, peer) = (self.now, self.own, self.peer);
        let stack = &mut self.stack;
        let done = |result: Result<(), Error>| result.map_or_else(|error| format!("{error:?}"), |()| "ok".to_owned());
        Ok(match call {
            Call::Socket => unreachable!("it needs no name yet"),
            Call::Bind(port) => done(stack.bind(socket.id, SocketAddr::new(own, *port)).map(|_| ())),
            Call::Listen(backlog) => done(stack.listen(socket.id, *backlog)),
            Call::Connect(number) => {
                let remote = SocketAddr::new(peer, PEER_PORT + *number as u16);
                done(stack.connect(now, socket.id, remote))
            }
            Call::Accept(accepted) => match stack.accept(now, socket.id) {
                Ok((id, _)) => {
                    let name = accepted.clone().ok_or("a connection was there")?;
                    self.sockets.insert(name, Named { id, sent: 0, received: 0 });
                    "ok".to_owned()
                }
                Err(error) => format!("{error:?}"),
            },
            Call::Send(len) => return self.send(name, *len),
            Call::Recv(len) | Call::Peek(len) => return self.recv(name, *len, matches!(call, Call::Peek(_))),
            Call::Pump(len) => return self.pump(name, *len),
            Call::PumpToWrap(left) => return self.pump_to_wrap(name, *left),
            Call::Shutdown(how) => {
                let how = match how.as_str() {
                    "read" => Shutdown::Read,
                    "write" => Shutdown::Write,
                    _ => Shutdown::Both,
                };
                done(stack.shutdown(now, socket.id, how))
            }
            Call::Close => {
                stack.close(now, socket.id);
                self.sockets.remove(name);
                "ok".to_owned()
            }
            Call::Set(option, value) => done(stack.set_option(socket.id, socket_option(option, value)?)),
            Call::State(state) => {
                let info = stack.stream_info(socket.id).map_err(|error| format!("{error:?}"))?;
                compare_as("state", state.as_str(), info.state.name())?;
                "ok".to_owned()
            }
            Call::Ready(wanted) => {
                compare_as("readiness", wanted, &ready(stack.readiness(socket.id)))?;
                "ok".to_owned()
            }
            Call::TakeError => match stack.take_error(socket.id).map_err(|error| format!("{error:?}"))? {
                Some(error) => format!("{error:?}"),
                None => "none".to_owned(),
            },
        })
    }

    fn send(&mut self, name: &str, len: usize) -> Result<String, String> {
        let socket = self.socket(name)?;
        let data = stream(socket.sent.wrapping_add(1), len);
        match self.stack.send(self.now, socket.id, &data) {
            Ok(taken) => {
                if let Some(socket) = self.sockets.get_mut(name) {
                    socket.sent += taken as u32;
                }
                Ok(taken.to_string())
            }
            Err(error) => Ok(format!("{error:?}")),
        }
    }

    fn recv(&mut self, name: &str, len: usize, keep: bool) -> Result<String, String> {
        let socket = self.socket(name)?;
        let mut buffer = vec![0; len];
        let result = match keep {
            true => self.stack.peek(socket.id, &mut buffer),
            false => self.stack.recv(socket.id, &mut buffer),
        };
        match result {
            Ok(taken) => {
                if buffer[..taken] != stream(socket.received.wrapping_add(1), taken) {
                    return Err("the bytes read are not those of the stream".to_owned());
                }
                if let Some(socket) = self.sockets.get_mut(name)
                    && !keep
                {
                    socket.received += taken as u32;
                }
                Ok(taken.to_string())
            }
            Err(error) => Ok(format!("{error:?}")),
        }
    }

    /// Sends until `left` bytes remain before our numbers wrap, and counts from there.
    fn pump_to_wrap(&mut self, name: &str, left: u32) -> Result<String, String> {
        let socket = self.socket(name)?;
        let own = self.pair(1).own_isn.ok_or("nothing was sent yet")?;
        let next = own.wrapping_add(socket.sent).wrapping_add(1);
        let len = (u32::MAX - next).checked_sub(left - 1).ok_or("the wrap is nearer")?;
        self.pump(name, len as usize)?;
        let pair = self.pair(1);
        pair.own_isn = Some(next.wrapping_add(len).wrapping_sub(1));
        pair.seen = 1;
        if let Some(socket) = self.sockets.get_mut(name) {
            socket.sent = 0;
        }
        Ok("ok".to_owned())
    }

    /// Sends bytes of a socket to the first port of a peer that acknowledges each segment at once.
    fn pump(&mut self, name: &str, len: usize) -> Result<String, String> {
        let mut left = len;
        let goal = self.socket(name)?.sent.wrapping_add(len as u32).wrapping_add(1);
        for _ in 0..TURNS_MAX {
            if left > 0
                && let Ok(taken) = self.send(name, left)?.parse::<usize>()
            {
                left -= taken;
            }
            self.flush();
            let Some((at, packet)) = self.sent.pop_front() else {
                return Err(format!("{left} bytes are left, and nothing leaves"));
            };
            let read = bytes::read(&packet)?;
            let text = self.describe(at, &packet);
            self.trace.push(text);
            let expected = Segment {
                port: 1,
                flags: ACK,
                seq: self.pair(1).seen.max(1),
                ack: None,
                len: read.tcp.payload.len(),
                ..Segment::default()
            };
            self.compare(&expected, &read, packet.len())?;
            let (seen, ack) = (self.pair(1).seen, read.tcp.ack.wrapping_sub(self.pair(1).peer_isn));
            let answer = Segment { port: 1, flags: ACK, seq: ack, ack: Some(seen), ..Segment::default() };
            self.inject(&answer)?;
            if seen == goal {
                return Ok("ok".to_owned());
            }
        }
        Err("the stream never ends".to_owned())
    }
}

fn ready(readiness: Readiness) -> Vec<String> {
    let all = [
        (Readiness::READABLE, "readable"),
        (Readiness::WRITABLE, "writable"),
        (Readiness::READ_CLOSED, "read-closed"),
        (Readiness::HANG_UP, "hang-up"),
        (Readiness::ERROR, "error"),
    ];
    let names = all.iter().filter(|(condition, _)| readiness.contains(*condition)).map(|(_, name)| (*name).to_owned());
    let names: Vec<String> = names.collect();
    if names.is_empty() { vec!["nothing".to_owned()] } else { names }
}

fn socket_option(name: &str, value: &str) -> Result<SocketOption, String> {
    let time = || match value {
        "off" => Ok(None),
        _ => language::duration(value).map(Some).ok_or(format!("{value} is no time")),
    };
    let switch = || match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{value} is neither on nor off")),
    };
    let number = || value.parse::<usize>().map_err(|error| error.to_string());
    Ok(match name {
        "no-delay" => SocketOption::NoDelay(switch()?),
        "keep-alive" => SocketOption::KeepAlive(switch()?),
        "keep-idle" => SocketOption::KeepIdle(time()?.ok_or("a time is wanted")?),
        "keep-interval" => SocketOption::KeepInterval(time()?.ok_or("a time is wanted")?),
        "keep-count" => SocketOption::KeepCount(u8::try_from(number()?).map_err(|error| error.to_string())?),
        "linger" => SocketOption::Linger(time()?),
        "reuse-address" => SocketOption::ReuseAddress(switch()?),
        "receive-buffer" => SocketOption::ReceiveBuffer(number()?),
        "send-buffer" => SocketOption::SendBuffer(number()?),
        "user-timeout" => SocketOption::UserTimeout(time()?),
        "hop-limit" => SocketOption::HopLimit(u8::try_from(number()?).map_err(|error| error.to_string())?),
        other => return Err(format!("no option has the name {other}")),
    })
}
