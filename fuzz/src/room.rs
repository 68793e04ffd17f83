//! The server's room: strangers' frames, hellos that hold, a directory that answers late or nonsense.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

use unisockets_signaling::identity::{KeyPair, PublicKey};
use unisockets_signaling::leases::{ClaimError, Leases, Record};
use unisockets_signaling::network::secret_id;
use unisockets_signaling::protocol::{
    FRAME_LEN_MAX, FromMember, FromServer, GoneReason, Hello, IceServer, NetworkProof, Nonce, Proven, Query, VERSION,
    emit,
};
use unisockets_signaling::room::{Admission, Config, ConnectionId, Host, Output, Place, Room};

use crate::script::Script;

/// Steps of one script.
const STEPS_MAX: usize = 256;
/// Connections at one time.
const SLOTS: usize = 6;
/// Outputs that one step may cause: an answer each to all connections, and a few more.
const OUTPUTS_MAX: usize = 8 + 4 * SLOTS;
/// Questions to the directory that wait at one time.
const QUESTIONS_MAX: usize = 64;
const HOST: &str = "signal.example:8443";
/// Small, so that it runs out: two host addresses less than sixteen.
const PREFIX: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 80, 0, 0), 28);

/// What one step does; the numbers are part of the corpus.
pub(crate) mod op {
    crate::script::steps! {
        OPEN RAW HELLO RESOLVE LIST SIGNAL WATCH RENEW LEAVE ANSWER CLOSE TIME DRAIN DELIVER STRAY LONG
    }
}

struct Slot {
    id: ConnectionId,
    nonce: Nonce,
    resume: Option<Nonce>,
}

struct World {
    now_ms: u64,
    room: Room,
    leases: Leases,
    slots: [Option<Slot>; SLOTS],
    questions: VecDeque<Output>,
    present: BTreeSet<Place>,
    next: u64,
}

/// Key pairs of the members; the last one is a network's.
fn pairs() -> &'static [KeyPair; 5] {
    static PAIRS: OnceLock<[KeyPair; 5]> = OnceLock::new();
    PAIRS.get_or_init(|| std::array::from_fn(|n| KeyPair::from_seed(&[n as u8 + 1; 32])))
}

fn network(n: u8) -> String {
    match n % 3 {
        0 => "home".to_owned(),
        1 => "work".to_owned(),
        _ => secret_id("home", &pairs()[4].public()),
    }
}

pub(crate) fn run(script: &mut Script<'_>) {
    let ice_servers =
        vec![IceServer { url: "stun:{host}:8443".to_owned(), username: String::new(), credential: String::new() }];
    let admission = if script.flag() { Admission::SecretOnly } else { Admission::Open };
    let key = KeyPair::from_seed(&[200; 32]);
    let mut world = World {
        now_ms: 1_000_000_000,
        room: Room::new(Config { key, prefix: PREFIX, admission, ice_servers }),
        leases: Leases::new(PREFIX),
        slots: [const { None }; SLOTS],
        questions: VecDeque::new(),
        present: BTreeSet::new(),
        next: 0,
    };
    for _ in 0..STEPS_MAX {
        if script.is_over() {
            break;
        }
        world.step(script);
        world.settle();
        world.check();
    }
    world.end();
}

impl World {
    fn nonce(&mut self) -> Nonce {
        self.next += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.next.to_be_bytes());
        Nonce::new(bytes)
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.u8() % op::COUNT {
            op::OPEN => self.open(script.index(SLOTS)),
            op::HELLO => self.hello(script),
            op::ANSWER => {
                let at = script.index(QUESTIONS_MAX);
                if let Some(question) = self.questions.remove(at % self.questions.len().max(1)) {
                    self.answer(question, script);
                }
            }
            op::CLOSE => {
                let slot = script.index(SLOTS);
                let reason = script.pick(&[GoneReason::Closed, GoneReason::Timeout, GoneReason::Left]);
                self.close(slot, reason);
            }
            op::TIME => {
                self.now_ms += u64::from(script.u16()) * 10;
                self.room.handle_timeout(self.now_ms);
                let due = self.room.poll_timeout();
                assert!(due.is_none_or(|due| due > self.now_ms), "what was due is done");
            }
            op::DRAIN => self.room.drain(script.u64()),
            op::DELIVER => {
                let to = (network(script.u8()), key(script));
                let from = key(script);
                let _ = self.room.deliver(&to, from, &script.text());
            }
            op::STRAY => self.stray(script),
            other => self.talk(other, script),
        }
    }

    /// Lets a connection say something.
    fn talk(&mut self, op: u8, script: &mut Script<'_>) {
        let id = match &self.slots[script.index(SLOTS)] {
            Some(slot) => slot.id,
            None => ConnectionId(u64::MAX),
        };
        let frame = match op {
            op::RAW => script.text(),
            op::LONG => {
                let (head, len, tail) = (script.text(), usize::from(script.u16()), script.text());
                format!("{head}{}{tail}", script.pick(&["a", "\\n", "é", " "]).repeat(len))
            }
            op::RESOLVE => {
                let query = match script.u8() % 3 {
                    0 => Query::Name(script.text()),
                    1 => Query::Key(key(script)),
                    _ => Query::Ip(IpAddr::V4(Ipv4Addr::from(script.u32()))),
                };
                emit(&FromMember::Resolve { id: script.u64(), query })
            }
            op::LIST => {
                let after = script.flag().then(|| key(script));
                emit(&FromMember::List { id: script.u64(), after, limit: usize::from(script.u16()) })
            }
            op::SIGNAL => emit(&FromMember::Signal { id: script.u64(), to: key(script), payload: script.text() }),
            op::WATCH => {
                let first = script.u16();
                let count = script.u16() % 300;
                emit(&FromMember::Watch { keys: (0..count).map(|n| numbered(first.wrapping_add(n))).collect() })
            }
            op::RENEW => emit(&FromMember::Renew),
            op::LEAVE => emit(&FromMember::Leave),
            _ => unreachable!("every step is numbered"),
        };
        self.room.frame(self.now_ms, id, &frame);
    }

    fn open(&mut self, slot: usize) {
        if self.slots[slot].is_none() {
            let nonce = self.nonce();
            let id = ConnectionId(self.next);
            self.room.open(self.now_ms, id, Host::Known(HOST.to_owned()), nonce);
            self.slots[slot] = Some(Slot { id, nonce, resume: None });
        }
    }

    fn close(&mut self, slot: usize, reason: GoneReason) {
        if let Some(slot) = self.slots[slot].take() {
            self.room.closed(slot.id, reason);
        }
    }

    /// Says a hello whose proofs hold, unless the script wants otherwise.
    fn hello(&mut self, script: &mut Script<'_>) {
        let slot = script.index(SLOTS);
        let pair = &pairs()[script.index(4)];
        let network = network(script.u8());
        let name = script.pick(&[None, Some("alpha"), Some("beta"), Some("Gamma"), Some("-")]);
        let ipv4 = script.flag().then(|| Ipv4Addr::from(u32::from(PREFIX.0) + u32::from(script.u8() % 24)));
        let (ephemeral, resumes, spoilt) = (script.flag(), script.flag(), script.u8());
        let resume = self.slots.iter().flatten().find_map(|slot| slot.resume).filter(|_| resumes);
        let Some(Slot { id, nonce: server_nonce, .. }) = &self.slots[slot] else {
            return;
        };
        let (key, nonce) = (pair.public(), Nonce::new([5; 32]));
        let host = if spoilt == 255 { "evil.example" } else { HOST };
        let proven = Proven { host, network: &network, key: &key, server_nonce, nonce: &nonce };
        let network_proof = network.contains('~').then(|| {
            let pair = &pairs()[if spoilt == 254 { 3 } else { 4 }];
            NetworkProof { key: pair.public(), signature: proven.sign(pair) }
        });
        let proof = proven.sign(pair);
        let hello = Hello {
            protocol: if spoilt == 253 { 2 } else { VERSION },
            network,
            key,
            name: name.map(str::to_owned),
            ipv4,
            ephemeral,
            resume,
            nonce,
            proof,
            network_proof,
        };
        self.room.frame(self.now_ms, *id, &emit(&FromMember::Hello(Box::new(hello))));
    }

    /// Answers what the room asked, truly or with a failure.
    fn answer(&mut self, question: Output, script: &mut Script<'_>) {
        let failure = script.pick(&[
            None,
            None,
            Some(ClaimError::NameTaken),
            Some(ClaimError::AddressTaken),
            Some(ClaimError::PoolEmpty),
            Some(ClaimError::Unavailable),
        ]);
        match question {
            Output::Claim(id, claim) => {
                let present = |key: &PublicKey| self.present.contains(&(claim.network.clone(), *key));
                let result = match failure {
                    Some(failure) => Err(failure),
                    None => self.leases.claim(&claim, present).map(|(record, _)| record),
                };
                let resume = self.nonce();
                self.room.claimed(self.now_ms, id, result, resume);
            }
            Output::Find(id, number, network, query) => {
                let record = match query {
                    Query::Key(key) => self.leases.by_key(&network, &key),
                    Query::Name(name) => self.leases.by_name(&network, &name),
                    Query::Ip(IpAddr::V4(address)) => self.leases.by_address(&network, address),
                    Query::Ip(IpAddr::V6(_)) => None,
                };
                let found = record.filter(|_| failure.is_none()).map(|record| (record.clone(), script.flag()));
                self.room.found(id, number, found);
            }
            Output::List(id, number, network, after, limit) => {
                let found = self.leases.after(&network, after).take(limit).map(|record| (record.clone(), true));
                self.room.listed(id, number, found.collect());
            }
            Output::Forward { connection, id, .. } => {
                let delivered = if failure.is_none() { Ok(()) } else { Err(()) };
                self.room.forwarded(connection, id, delivered);
            }
            Output::Probe(id) => self.room.alive(id),
            _ => unreachable!("only questions are kept"),
        }
    }

    /// Answers what was not asked, of connections that may not exist.
    fn stray(&mut self, script: &mut Script<'_>) {
        let id = ConnectionId(u64::from(script.u8()));
        let record = Record {
            network: network(script.u8()),
            key: key(script),
            ipv4: Ipv4Addr::from(script.u32()),
            name: script.flag().then(|| "alpha".to_owned()),
            epoch: script.u64(),
            seen_s: script.u64(),
            keep_s: script.u64(),
            proof_ends_s: script.u64(),
        };
        let number = script.u64();
        match script.u8() % 5 {
            0 => self.room.found(id, number, Some((record, true))),
            1 => self.room.listed(id, number, vec![(record, false)]),
            2 => self.room.forwarded(id, number, Ok(())),
            3 => self.room.alive(id),
            _ => self.room.closed(ConnectionId(u64::MAX), GoneReason::Closed),
        }
    }

    /// Carries out what the room wants.
    fn settle(&mut self) {
        let outputs: Vec<Output> = std::iter::from_fn(|| self.room.poll_output()).collect();
        assert!(outputs.len() <= OUTPUTS_MAX, "one step causes {} outputs", outputs.len());
        for output in outputs {
            match output {
                Output::Send(id, message) => self.hear(id, &message),
                Output::Close(id) => {
                    let slot = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.id == id));
                    if let Some(slot) = slot {
                        self.close(slot, GoneReason::Closed);
                    }
                }
                Output::Enter(place) => drop(self.present.insert(place)),
                Output::Exit(place, kept) => {
                    assert!(self.present.remove(&place), "only who came goes");
                    self.leases.exit(&place.0, &place.1, kept, self.now_ms / 1_000);
                }
                question => {
                    if self.questions.len() >= QUESTIONS_MAX {
                        self.questions.pop_front();
                    }
                    self.questions.push_back(question);
                }
            }
        }
    }

    fn hear(&mut self, id: ConnectionId, message: &FromServer) {
        let len = emit(message).len();
        assert!(len <= FRAME_LEN_MAX, "the room sends a frame of {len} bytes");
        if let FromServer::Welcome(welcome) = message {
            assert!(welcome.lease.is_signed(), "a lease is signed");
            if let Some(slot) = self.slots.iter_mut().flatten().find(|slot| slot.id == id) {
                slot.resume = Some(welcome.resume);
            }
        }
    }

    fn check(&mut self) {
        // Closing what the room wants closed makes more outputs: they come with the next step.
        let open = self.slots.iter().flatten().count();
        assert_eq!(self.room.connection_count(), open, "every connection is known, and no other");
        assert!(self.room.member_count() <= open, "every member has a connection");
    }

    /// Everybody goes, and nothing is left.
    fn end(&mut self) {
        for slot in 0..SLOTS {
            self.close(slot, GoneReason::Closed);
            self.settle();
        }
        self.check();
        assert_eq!(self.room.member_count(), 0);
        assert_eq!(self.room.poll_timeout(), None, "nothing is due in an empty room");
        assert!(self.present.is_empty(), "who came has gone: {:?}", self.present);
    }
}

/// A key of a member, or of nobody.
fn key(script: &mut Script<'_>) -> PublicKey {
    match usize::from(script.u8() % 5) {
        4 => numbered(0xffff),
        n => pairs()[n].public(),
    }
}

/// A key that nobody holds.
fn numbered(n: u16) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    PublicKey::from_bytes(bytes)
}
