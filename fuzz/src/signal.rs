//! Introductions: what the link reads, and envelopes with a secret and without.

use std::sync::OnceLock;

use unisockets_link::Signal;
use unisockets_signaling::envelope::{self, Content, Freshness, SessionId};
use unisockets_signaling::identity::KeyPair;
use unisockets_signaling::network::Network;
use unisockets_signaling::protocol::Bytes32;

use crate::script::Script;

/// The context that envelopes are signed in.
const CONTEXT: &str = "unisockets-signal-v1";

struct World {
    networks: [Network; 2],
    sender: KeyPair,
    recipient: KeyPair,
}

/// Deriving keys of a secret takes a while: once is enough.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    let network = |secret| Network::new("home", secret).expect("the name is a label");
    WORLD.get_or_init(|| World {
        networks: [network(None), network(Some("a secret that nobody guesses"))],
        sender: KeyPair::from_seed(&[1; 32]),
        recipient: KeyPair::from_seed(&[2; 32]),
    })
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    match script.u8() % 5 {
        0 => read_signal(&String::from_utf8_lossy(script.rest())),
        kind @ (1 | 2) => {
            let world = world();
            let payload = String::from_utf8_lossy(script.rest());
            let network = &world.networks[usize::from(kind - 1)];
            let opened = envelope::open(network, &world.sender.public(), &world.recipient.public(), &payload);
            assert!(opened.is_err(), "nobody signs by chance");
        }
        3 => honest_signature(&mut script),
        _ => altered(&mut script),
    }
}

fn read_signal(text: &str) {
    if let Ok(signal) = serde_json::from_str::<Signal>(text) {
        let again = serde_json::to_string(&signal).expect("a signal has a JSON form");
        assert_eq!(serde_json::from_str::<Signal>(&again).ok(), Some(signal.clone()), "a signal reads back");
        let _ = signal.is_reasonable();
    }
}

/// A member signs whatever it likes: the signature holds, the content is arbitrary.
fn honest_signature(script: &mut Script<'_>) {
    let World { networks: [network, _], sender, recipient } = world();
    let now_ms = script.u64();
    let content = String::from_utf8_lossy(script.rest());
    let (from, to) = (sender.public(), recipient.public());
    let parts = [network.id().as_bytes(), from.as_bytes(), to.as_bytes(), content.as_bytes()];
    let signature = sender.sign(CONTEXT, &parts);
    let signed = serde_json::json!({ "content": content, "signature": signature }).to_string();
    if let Ok(content) = envelope::open(network, &from, &to, &signed) {
        let mut freshness = Freshness::default();
        if freshness.accept(now_ms, &from, &content).is_ok() {
            assert!(freshness.accept(now_ms, &from, &content).is_err(), "an envelope is accepted once");
        }
        read_signal(&content.body);
    }
}

/// What is sealed opens, and after a change of any byte it does not say anything else.
fn altered(script: &mut Script<'_>) {
    let World { networks, sender, recipient } = world();
    let network = &networks[script.index(2)];
    let (at, change) = (usize::from(script.u16()), script.u8());
    let content = Content {
        session: SessionId(u128::from(script.u64())),
        counter: script.u32(),
        sent_at_ms: script.u64(),
        incarnation: script.flag().then_some(7),
        offer: script.flag().then(|| Bytes32::new([9; 32])),
        body: String::from_utf8_lossy(script.rest()).into_owned(),
    };
    let (from, to) = (sender.public(), recipient.public());
    let sealed = envelope::seal(network, sender, &to, &content, [3; 24]);
    assert_eq!(envelope::open(network, &from, &to, &sealed).as_ref(), Ok(&content), "an envelope opens");
    assert!(envelope::open(network, &to, &from, &sealed).is_err(), "it opens for its recipient only");
    let mut bytes = sealed.into_bytes();
    let at = at % bytes.len();
    bytes[at] ^= change;
    if let Ok(opened) = envelope::open(network, &from, &to, &String::from_utf8_lossy(&bytes)) {
        assert_eq!(opened, content, "an altered envelope says nothing new");
    }
}
