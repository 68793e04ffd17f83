//! A member against a server that says anything, in any order, at any time.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use unisockets_signaling::identity::KeyPair;
use unisockets_signaling::member::{Config, Membership};
use unisockets_signaling::network::{Network, Prefix, address_v6};
use unisockets_signaling::protocol::{
    Code, FRAME_LEN_MAX, FromServer, Lease, Member, Nonce, Query, SignedLease, Welcome, emit,
};

use crate::script::Script;

/// Steps of one script.
const STEPS_MAX: usize = 256;
/// Requests that a member keeps, and so the most that one event of the server can set free.
const REQUESTS_MAX: usize = 1_024;

/// What one step does; the numbers are part of the corpus.
pub(crate) mod op {
    crate::script::steps! {
        RAW CHALLENGE WELCOME REFUSE DRAIN RESOLVE LIST SIGNAL ANSWER CLOSED TIME LEAVE
    }
}

struct World {
    now_ms: u64,
    membership: Membership,
    asked: u64,
}

fn pair() -> &'static KeyPair {
    static PAIR: OnceLock<KeyPair> = OnceLock::new();
    PAIR.get_or_init(|| KeyPair::from_seed(&[1; 32]))
}

fn server() -> &'static KeyPair {
    static PAIR: OnceLock<KeyPair> = OnceLock::new();
    PAIR.get_or_init(|| KeyPair::from_seed(&[200; 32]))
}

pub(crate) fn run(script: &mut Script<'_>) {
    let config = Config {
        network: Arc::new(Network::new("home", None).expect("the name is a label")),
        pair: pair().clone(),
        name: Some("alpha".to_owned()),
        ipv4: None,
        ephemeral: false,
        host: "signal.example:8443".to_owned(),
    };
    let mut world = World { now_ms: 1_000_000_000, membership: Membership::new(config), asked: 0 };
    for _ in 0..STEPS_MAX {
        if script.is_over() {
            break;
        }
        world.step(script);
        world.check();
    }
}

impl World {
    fn step(&mut self, script: &mut Script<'_>) {
        match script.u8() % op::COUNT {
            op::RAW => {
                let frame = script.text();
                self.hear(&frame);
            }
            op::CHALLENGE => self.say(&FromServer::Challenge { nonce: Nonce::new([script.u8(); 32]) }),
            op::WELCOME => {
                let welcome = welcome(script);
                self.say(&FromServer::Welcome(Box::new(welcome)));
            }
            op::REFUSE => {
                let id = script.flag().then(|| u64::from(script.u8()));
                let code = script.pick(&[Code::InUse, Code::TooMuch, Code::Unavailable, Code::BadName, Code::Other]);
                let retry_after_ms = script.flag().then(|| script.u64());
                self.say(&FromServer::Refused { id, code, message: String::new(), retry_after_ms });
            }
            op::DRAIN => self.say(&FromServer::Draining { retry_after_ms: script.u64() }),
            op::RESOLVE => {
                let query = match script.u8() % 3 {
                    0 => Query::Name(script.text()),
                    1 => Query::Key(pair().public()),
                    _ => Query::Ip(Ipv4Addr::from(script.u32()).into()),
                };
                self.asked = self.membership.resolve(query);
            }
            op::LIST => self.asked = self.membership.list(None, usize::from(script.u8())),
            op::SIGNAL => self.asked = self.membership.signal(server().public(), script.text()),
            op::ANSWER => self.answer(script),
            op::CLOSED => self.membership.handle_closed(self.now_ms, script.u64()),
            op::TIME => {
                self.now_ms += u64::from(script.u32());
                let _ = self.membership.handle_timeout(self.now_ms);
            }
            op::LEAVE => self.membership.leave(),
            _ => unreachable!("every step is numbered"),
        }
    }

    fn answer(&mut self, script: &mut Script<'_>) {
        let id = self.asked.wrapping_sub(u64::from(script.u8() % 4));
        let key = pair().public();
        let ipv4 = Ipv4Addr::from(script.u32());
        let true_ipv6 = address_v6("home", &key);
        let ipv6 = if script.flag() { true_ipv6 } else { std::net::Ipv6Addr::LOCALHOST };
        let member = Member { key, ipv4, ipv6, name: Some("alpha".to_owned()), present: true };
        self.say(&match script.u8() % 3 {
            0 => FromServer::Resolved { id, member },
            1 => FromServer::Members { id, members: vec![member] },
            _ => FromServer::Delivered { id },
        });
    }

    fn say(&mut self, message: &FromServer) {
        self.hear(&emit(message));
    }

    fn hear(&mut self, frame: &str) {
        self.membership.handle_frame(self.now_ms, frame, Nonce::new([5; 32]));
    }

    /// Takes out what the member says and learns, which must be little and legal.
    fn check(&mut self) {
        let frames = std::iter::from_fn(|| self.membership.poll_frame());
        let lens: Vec<usize> = frames.map(|frame| frame.len()).collect();
        assert!(lens.iter().all(|len| *len <= FRAME_LEN_MAX), "a member says legal frames only");
        assert!(lens.len() <= REQUESTS_MAX + 2, "one step makes a member say {} things", lens.len());
        let events = std::iter::from_fn(|| self.membership.poll_event()).count();
        assert!(events <= REQUESTS_MAX + 2, "one step makes a member learn {events} things");
        assert_eq!(
            self.membership.poll_timeout().is_none(),
            self.membership.is_ended(),
            "only the end waits for nothing"
        );
    }
}

fn welcome(script: &mut Script<'_>) -> Welcome {
    let key = if script.flag() { server().public() } else { pair().public() };
    let lease = Lease {
        network: "home".to_owned(),
        key,
        ipv4: Ipv4Addr::from(script.u32()),
        name: None,
        epoch: script.u64(),
        not_after: script.u64(),
    };
    Welcome {
        lease: SignedLease::sign(lease, server()),
        ipv6: address_v6("home", &key),
        // Half of all addresses are in it.
        prefixes: vec![Prefix { address: Ipv4Addr::UNSPECIFIED.into(), len: 1 }],
        lease_s: script.u64(),
        resume: Nonce::new([script.u8(); 32]),
        ice_servers: Vec::new(),
    }
}
