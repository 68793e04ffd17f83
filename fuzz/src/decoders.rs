//! Everything else that reads text or bytes: what is typed, what lies in files, and the smallest protocols.
//!
//! What is accepted means something, and says it again when it is written out.

use std::net::SocketAddr;

use crate::device::segments::{cut, join};
use serde::Serialize;
use serde::de::DeserializeOwned;
use unisockets_link::fault::{Conditions, Fault};
use unisockets_link::pcapng::{Direction, Encoder, Record};
use unisockets_signaling::hosts::{Host, HostName, Hosts};
use unisockets_signaling::identity::{KeyPair, PublicKey};
use unisockets_signaling::leases::{self, Leases};
use unisockets_signaling::network::{is_id, parse_name};
use unisockets_signaling::pins::{Pins, Subject};

use crate::script::Script;

/// The control lane's messages, which the node keeps to itself.
#[allow(dead_code, reason = "only what reads is driven here")]
#[path = "../../src/hello.rs"]
mod hello;
/// The server's other port; its crate is built without what does I/O.
#[path = "../../signaling/src/stun.rs"]
mod stun;

/// The longest condition in time that a wire may have, in microseconds.
const TIME_US_MAX: u64 = 60_000_000;

/// What reads the input; the numbers are part of the corpus.
pub(crate) mod op {
    crate::script::steps! {
        CONDITIONS HOST KEY NAME PINS RECORD STUN CONTROL CAPTURE SEGMENTS CUT
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    match script.u8() % op::COUNT {
        op::CONDITIONS => conditions(&text(&mut script)),
        op::HOST => host(&mut script),
        op::KEY => key(&text(&mut script)),
        op::NAME => name(&text(&mut script)),
        op::PINS => pins(&text(&mut script)),
        op::RECORD => records(&text(&mut script)),
        op::STUN => binding(script.rest()),
        op::CONTROL => control(script.rest()),
        op::CAPTURE => capture(&mut script),
        op::SEGMENTS => segments(&mut script),
        op::CUT => drop(cut(script.rest(), |_| {})),
        _ => unreachable!("every reader is numbered"),
    }
}

/// What peers send is joined for a kernel: whatever it is, nothing is lost, and what was joined is cut as it was.
fn segments(script: &mut Script<'_>) {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    while packets.len() < 8 && !script.is_over() {
        let (like, payload_len) = (script.flag(), usize::from(script.u8()));
        let mut packet = match packets.last() {
            // The next one of the same stream, perhaps.
            Some(before) if like => before.clone(),
            _ => {
                let len = script.u8() % 64;
                script.bytes(usize::from(len)).to_vec()
            }
        };
        let start = match packet.first() {
            Some(0x45) => 20,
            _ => 40,
        };
        if like && packet.len() >= start + 20 {
            let next = u32::from_be_bytes(packet[start + 4..start + 8].try_into().expect("four bytes"));
            let next = next.wrapping_add((packet.len() - start - 20) as u32);
            packet[start + 4..start + 8].copy_from_slice(&next.to_be_bytes());
        } else {
            packet.extend(std::iter::repeat_n(7, payload_len));
        }
        packets.push(packet);
    }
    let views: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let mut rest = views.as_slice();
    while let Some((joined, count)) = join(rest) {
        assert!(count >= 1 && count <= rest.len(), "each packet is written once");
        let written = [joined.head, joined.parts.concat()].concat();
        let mut again = Vec::new();
        let understood = cut(&written, |packet| again.push(packet));
        if count > 1 {
            assert!(understood && again.len() == count, "what was joined of {count} is cut to {}", again.len());
        }
        if understood {
            let lens = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).collect::<Vec<_>>();
            let given: Vec<Vec<u8>> = rest[..count].iter().map(|packet| packet.to_vec()).collect();
            assert_eq!(lens(&again), lens(&given), "no byte is lost");
        }
        rest = &rest[count..];
    }
}

fn text(script: &mut Script<'_>) -> String {
    String::from_utf8_lossy(script.rest()).into_owned()
}

fn reads_back<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(text: &str) -> Option<T> {
    let value: T = serde_json::from_str(text).ok()?;
    let again = serde_json::to_string(&value).expect("what was read has a JSON form");
    assert_eq!(serde_json::from_str::<T>(&again).ok().as_ref(), Some(&value), "what is written reads back: {again}");
    Some(value)
}

/// `--fault`: a wire with any conditions that are accepted can be used.
fn conditions(text: &str) {
    let Ok(conditions) = text.parse::<Conditions>() else {
        return;
    };
    let shares = [conditions.loss, conditions.reorder, conditions.duplicate, conditions.corrupt];
    assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "a share is one: {conditions:?}");
    assert!(conditions.delay_us.max(conditions.jitter_us) <= TIME_US_MAX, "a time is bounded: {conditions:?}");
    let mut wire = Fault::new(conditions, 1);
    for now_us in 0..8 {
        wire.handle_packet(now_us, &[7; 1_500]);
    }
    let mut arrived = 0;
    while let Some(at_us) = wire.poll_timeout_us() {
        assert!(wire.poll_packet(at_us).is_some_and(|packet| packet.len() == 1_500), "what is due arrives");
        arrived += 1;
    }
    assert!(arrived as u64 + wire.lost() >= 8 && arrived <= 16, "packets are lost, or arrive, at most twice");
}

/// A `Host` header, and a server's own names.
fn host(script: &mut Script<'_>) {
    let local: SocketAddr = script.pick(&["127.0.0.1:80", "[::1]:8443", "192.0.2.1:443"]).parse().expect("a literal");
    let named = script.text();
    let header = text(script);
    let names: Vec<HostName> = named.parse().into_iter().collect();
    let by_name = !names.is_empty();
    let known = match Hosts::new(names, Some("machine")).check(&header, local) {
        Host::Known(called) => {
            assert_eq!(called, header, "a proof covers what was called");
            assert!(header.parse::<HostName>().is_ok(), "what is known is a host");
            true
        }
        Host::Unknown => false,
    };
    assert!(!by_name || known || header != named || !named.contains('.'), "a server knows its own name: {named}");
}

fn key(text: &str) {
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text, "a key has one text");
        assert!(key.short().len() < text.len());
    }
}

fn name(text: &str) {
    if let Ok(name) = parse_name(text) {
        assert!(name.len() <= 63 && name.eq_ignore_ascii_case(text), "a name stays the same but for its case");
        assert!(is_id(&name), "a name is an open network's id");
    }
    if is_id(text) {
        assert!(parse_name(text.split('~').next().unwrap_or_default()).is_ok(), "an id begins with a name");
    }
}

/// The file of pins beside a node's key.
fn pins(text: &str) {
    let Some(mut pins) = reads_back::<Pins>(text) else {
        return;
    };
    let own = KeyPair::from_seed(&[1; 32]).public();
    let subject = Subject::Name("home", "alpha");
    let pinned = pins.iter().find(|(known, _)| *known == subject.to_string()).map(|(_, key)| *key);
    let result = pins.check(&subject, &own);
    assert_eq!(result.is_ok(), pinned.is_none_or(|pinned| pinned == own), "another key than the pinned one is refused");
    pins.forget(&subject.to_string());
    assert!(pins.check(&subject, &own).is_ok(), "what is forgotten is pinned anew");
}

/// What a server finds in its file after a restart.
fn records(text: &str) {
    const PREFIX: (std::net::Ipv4Addr, u8) = (std::net::Ipv4Addr::new(10, 80, 0, 0), 16);
    if let Some(record) = reads_back::<leases::Record>(text) {
        let mut leases = Leases::new(PREFIX);
        leases.restore(record.clone(), 5);
        let held = leases.by_key(&record.network, &record.key);
        assert!(held.is_none_or(|held| held.ipv4 == record.ipv4), "a lease is put back as it was");
        let _ = leases.sweep(u64::MAX, leases::Demand::High, |_, _| false);
    }
    if let Some(reservation) = reads_back::<leases::Reservation>(text) {
        let mut leases = Leases::new(PREFIX);
        leases.restore_reservation(reservation);
        let _ = leases.sweep(u64::MAX, leases::Demand::Usual, |_, _| true);
    }
}

/// No packet is answered but a request, and no answer is much longer than its request.
fn binding(packet: &[u8]) {
    for source in ["192.0.2.1:1", "[2001:db8::1]:65535", "[::ffff:192.0.2.1]:9"] {
        let source: SocketAddr = source.parse().expect("a literal");
        if let Some(answer) = stun::answer(packet, source) {
            assert!(packet.len() >= 20 && answer.len() <= packet.len() + 24, "an answer is short");
            assert_eq!((&answer[..2], &answer[4..20]), (&[1, 1][..], &packet[4..20]), "it answers this request");
            assert_eq!(usize::from(u16::from_be_bytes([answer[2], answer[3]])) + 20, answer.len());
            assert!(stun::answer(&answer, source).is_none(), "two servers never talk to each other");
        }
    }
}

/// The control lane: a hello that nobody has signed is not signed.
fn control(message: &[u8]) {
    let Some(control) = hello::Control::parse(message) else {
        return;
    };
    assert_eq!(hello::Control::parse(&control.emit()).as_ref(), Some(&control), "a control message reads back");
    if let hello::Control::Hello(hello) = control {
        let (from, to) = (KeyPair::from_seed(&[1; 32]).public(), KeyPair::from_seed(&[2; 32]).public());
        let ends = hello::Ends { network: "home", from: &from, to: &to };
        assert!(!hello.is_signed(ends), "nobody signs by chance");
    }
}

/// A capture of anything can be walked by its lengths.
fn capture(script: &mut Script<'_>) {
    let mut out = Vec::new();
    let mut encoder = Encoder::new("unisockets", usize::from(script.u16()), &mut out);
    let interface = encoder.interface(&script.text(), &script.text(), &mut out);
    encoder.name([10, 80, 0, 1].into(), &script.text(), &mut out);
    let comment = script.text();
    let comment = script.flag().then_some(comment.as_str());
    let (time_ns, packet) = (script.u64(), script.rest());
    encoder.packet(&Record { interface, time_ns, direction: Direction::Inbound, packet, comment }, &mut out);
    let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().expect("four bytes were taken")) as usize;
    let (mut at, mut blocks) = (0, 0);
    while at < out.len() {
        let len = word(at + 4);
        assert!(len % 4 == 0 && len >= 12 && word(at + len - 4) == len, "a block says its length at both ends");
        (at, blocks) = (at + len, blocks + 1);
    }
    assert_eq!((at, blocks), (out.len(), 4), "all blocks are there");
}
