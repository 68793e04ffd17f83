//! One end of a TCP connection and the program that uses it: it sends a pattern and checks another.

use unisockets_stack::{Error, Instant, Readiness, Shutdown, SocketId, Stack};

use crate::random::pattern;
use crate::world::MS;

/// Bytes with which a client names its session.
pub const HEADER_LEN: u64 = 8;
const CHUNK: usize = 16 * 1024;

/// What two ends have agreed on.
#[derive(Debug, Clone, Copy)]
pub struct Deal {
    pub seed: u64,
    /// Bytes from client to server, the header among them.
    pub up: u64,
    /// Bytes from server to client.
    pub down: u64,
    /// Whether the server begins only after the client has ended its direction.
    pub echo: bool,
    /// The pause of a slow reader between chunks, in microseconds.
    pub pause: Option<u64>,
    /// How long the client says nothing in the middle, in microseconds.
    pub rest: Option<u64>,
}

/// How an end of a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every byte has come and gone.
    Done,
    /// The connection was never made.
    Failed(Error),
    /// The connection broke.
    Broken(Error),
    /// The node crashed or left.
    Died,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Talk {
    pub node: usize,
    pub life: u64,
    pub socket: SocketId,
    pub side: Side,
    pub session: Option<usize>,
    pub outcome: Option<Outcome>,
    pub ended_at: u64,
    resume_at: Option<u64>,
    finish_at: Option<u64>,
    /// When the client goes on that rests in the middle.
    rests_until: Option<u64>,
    deal: Option<Deal>,
    connected: bool,
    sent: u64,
    received: u64,
    shut: bool,
    ended: bool,
    header: Vec<u8>,
}

/// Bytes that one end sends and the other one expects.
fn content(deal: &Deal, session: usize, from: Side, offset: u64, out: &mut [u8]) {
    let seed = if from == Side::Client { deal.seed } else { !deal.seed };
    pattern(seed, offset, out);
    if from == Side::Client {
        let header = (session as u64).to_be_bytes();
        for (at, byte) in (offset..HEADER_LEN).zip(out) {
            *byte = header[at as usize];
        }
    }
}

impl Talk {
    pub fn client(node: usize, life: u64, socket: SocketId, session: usize, deal: Deal) -> Talk {
        let talk = Talk::server(node, life, socket);
        Talk { side: Side::Client, session: Some(session), deal: Some(deal), connected: false, ..talk }
    }

    pub fn server(node: usize, life: u64, socket: SocketId) -> Talk {
        Talk {
            node,
            life,
            socket,
            side: Side::Server,
            session: None,
            outcome: None,
            ended_at: 0,
            resume_at: None,
            finish_at: None,
            rests_until: None,
            deal: None,
            connected: true,
            sent: 0,
            received: 0,
            shut: false,
            ended: false,
            header: Vec::new(),
        }
    }

    pub fn next(&self) -> Option<u64> {
        self.resume_at.into_iter().chain(self.finish_at).min()
    }

    /// Returns which directions are to go on now.
    pub fn due(&mut self, now: u64) -> Option<(bool, bool)> {
        let read = self.resume_at.take_if(|at| *at <= now).is_some();
        let write = self.finish_at.take_if(|at| *at <= now).is_some();
        (read || write).then_some((read, write))
    }

    fn peer(&self) -> Side {
        if self.side == Side::Client { Side::Server } else { Side::Client }
    }

    /// Bytes to be sent and to be received.
    fn totals(&self) -> Option<(u64, u64)> {
        let deal = self.deal?;
        Some(if self.side == Side::Client { (deal.up, deal.down) } else { (deal.down, deal.up) })
    }

    /// Goes on when the socket is ready; whoever finds something to do did not wait in vain.
    pub fn ready(&mut self, now: u64, stack: &mut Stack, deals: &dyn Fn(usize) -> Deal) {
        let readiness = stack.readiness(self.socket);
        let either = Readiness::ERROR | Readiness::HANG_UP;
        let read = readiness.intersects(Readiness::READABLE | Readiness::READ_CLOSED | either);
        let write = readiness.intersects(Readiness::WRITABLE | either);
        self.drive(now, stack, deals, (read, write));
    }

    /// Reads and writes as far as it goes.
    pub fn drive(&mut self, now: u64, stack: &mut Stack, deals: &dyn Fn(usize) -> Deal, (read, write): (bool, bool)) {
        if self.outcome.is_some() {
            return;
        }
        let result = self.go_on(now, stack, deals, (read, write));
        match result {
            Ok(()) if self.ended && self.shut => self.outcome = Some(Outcome::Done),
            Ok(()) => {}
            Err(error) if self.connected => self.outcome = Some(Outcome::Broken(error)),
            Err(error) => self.outcome = Some(Outcome::Failed(error)),
        }
        if self.outcome.is_some() {
            self.ended_at = now;
            stack.close(Instant::from_micros(now), self.socket);
        }
    }

    fn go_on(
        &mut self,
        now: u64,
        stack: &mut Stack,
        deals: &dyn Fn(usize) -> Deal,
        (read, write): (bool, bool),
    ) -> Result<(), Error> {
        let mut write = write;
        if !self.connected {
            if let Some(error) = stack.take_error(self.socket)? {
                return Err(error);
            }
            if !stack.readiness(self.socket).intersects(Readiness::WRITABLE | Readiness::HANG_UP) {
                return Ok(());
            }
            self.connected = true;
            write = true;
        }
        if read {
            let could = self.may_write();
            self.read(now, stack, deals)?;
            write |= self.may_write() && !could;
        }
        if write && self.may_write() { self.write(now, stack) } else { Ok(()) }
    }

    fn may_write(&self) -> bool {
        let waits = self.side == Side::Server && self.deal.is_some_and(|deal| deal.echo) && !self.ended;
        self.deal.is_some() && !self.shut && !waits
    }

    fn read(&mut self, now: u64, stack: &mut Stack, deals: &dyn Fn(usize) -> Deal) -> Result<(), Error> {
        let mut buffer = [0; CHUNK];
        while !self.ended && self.resume_at.is_none() {
            match stack.recv(self.socket, &mut buffer) {
                Ok(0) => self.end_of_stream(),
                Ok(len) => self.take(&buffer[..len], deals),
                Err(Error::Again) => return Ok(()),
                Err(error) => return Err(error),
            }
            if let Some(pause) = self.deal.and_then(|deal| deal.pause) {
                self.resume_at = Some(now + pause.max(MS));
            }
        }
        Ok(())
    }

    fn end_of_stream(&mut self) {
        let expected = self.totals().map(|(_, expected)| expected);
        assert_eq!(Some(self.received), expected, "a stream ended early: {self:?}");
        self.ended = true;
    }

    fn take(&mut self, bytes: &[u8], deals: &dyn Fn(usize) -> Deal) {
        let mut bytes = bytes;
        if self.deal.is_none() {
            let wanted = HEADER_LEN as usize - self.header.len();
            let (head, tail) = bytes.split_at(wanted.min(bytes.len()));
            self.header.extend_from_slice(head);
            self.received += head.len() as u64;
            bytes = tail;
            let Ok(header) = <[u8; 8]>::try_from(&self.header[..]) else {
                return;
            };
            let session = usize::try_from(u64::from_be_bytes(header)).expect("a session's number is small");
            (self.session, self.deal) = (Some(session), Some(deals(session)));
        }
        let (Some(deal), Some(session)) = (self.deal, self.session) else {
            return;
        };
        let mut expected = [0; CHUNK];
        let expected = &mut expected[..bytes.len()];
        content(&deal, session, self.peer(), self.received, expected);
        assert!(bytes == expected, "wrong bytes from {} on: {self:?}", self.received);
        self.received += bytes.len() as u64;
        let total = self.totals().map_or(0, |(_, total)| total);
        assert!(self.received <= total, "more bytes than were sent: {self:?}");
    }

    fn write(&mut self, now: u64, stack: &mut Stack) -> Result<(), Error> {
        let (Some(deal), Some(session), Some((total, _))) = (self.deal, self.session, self.totals()) else {
            return Ok(());
        };
        let at = Instant::from_micros(now);
        let mut buffer = [0; CHUNK];
        let rest = deal.rest.filter(|_| self.side == Side::Client);
        let half = if rest.is_some() { total / 2 } else { total };
        while self.sent < total {
            if let Some(rest) = rest.filter(|_| self.sent >= half) {
                let until = *self.rests_until.get_or_insert(now + rest);
                if now < until {
                    self.finish_at = Some(until);
                    return Ok(());
                }
            }
            let end = if self.sent < half { half } else { total };
            let len = (end - self.sent).min(CHUNK as u64) as usize;
            content(&deal, session, self.side, self.sent, &mut buffer[..len]);
            match stack.send(at, self.socket, &buffer[..len]) {
                Ok(len) => self.sent += len as u64,
                Err(Error::Again) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        stack.shutdown(at, self.socket, Shutdown::Write)?;
        self.shut = true;
        Ok(())
    }
}
