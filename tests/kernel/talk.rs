//! Our side of connections: sends one pattern, takes another, and checks every byte.

use std::collections::HashMap;

use unisockets_stack::{Error, Instant, Shutdown, SocketId, Stack};

use crate::member::Member;
use crate::random::pattern;

/// Bytes of one call.
const CHUNK_LEN: usize = 32 * 1024;

/// What a connection has to send and to take.
#[derive(Debug, Clone)]
pub struct Talk {
    pub seed: u64,
    pub send_len: u64,
    pub peer_seed: u64,
    pub take_len: u64,
    sent: u64,
    taken: u64,
    shut: bool,
    ended: bool,
}

impl Talk {
    pub fn new(seed: u64, send_len: u64, peer_seed: u64, take_len: u64) -> Talk {
        Talk { seed, send_len, peer_seed, take_len, sent: 0, taken: 0, shut: false, ended: false }
    }

    /// Does what can be done now; returns whether both directions have come to their end.
    fn step(&mut self, stack: &mut Stack, now: Instant, socket: SocketId) -> bool {
        let mut chunk = vec![0; CHUNK_LEN];
        while self.sent < self.send_len {
            let part = &mut chunk[..(self.send_len - self.sent).min(CHUNK_LEN as u64) as usize];
            pattern(self.seed, self.sent, part);
            match stack.send(now, socket, part) {
                Ok(len) => self.sent += len as u64,
                Err(Error::Again) => break,
                Err(error) => panic!("send behind {}: {error}", self.sent),
            }
        }
        if self.sent == self.send_len && !self.shut {
            stack.shutdown(now, socket, Shutdown::Write).unwrap();
            self.shut = true;
        }
        let mut wanted = vec![0; CHUNK_LEN];
        while !self.ended {
            match stack.recv(socket, &mut chunk) {
                Ok(0) => {
                    assert_eq!(self.taken, self.take_len, "the stream is as long as it should be");
                    self.ended = true;
                }
                Ok(len) => {
                    pattern(self.peer_seed, self.taken, &mut wanted[..len]);
                    assert!(chunk[..len] == wanted[..len], "wrong bytes for us behind {}", self.taken);
                    self.taken += len as u64;
                }
                Err(Error::Again) => break,
                Err(error) => panic!("recv behind {}: {error}", self.taken),
            }
        }
        self.shut && self.ended
    }
}

/// Carries all talks to their ends.
pub fn talk(member: &Member, mut talks: HashMap<SocketId, Talk>) {
    let all: Vec<SocketId> = talks.keys().copied().collect();
    let mut ready: Vec<SocketId> = all;
    while !talks.is_empty() {
        for socket in ready {
            let Some(talk) = talks.get_mut(&socket) else {
                continue;
            };
            if member.call(|stack, now| talk.step(stack, now, socket)) {
                talks.remove(&socket);
            }
        }
        if talks.is_empty() {
            return;
        }
        ready = member.ready().into_iter().collect();
    }
}
