//! What the wire promises, asked of two real kernels.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use unisockets_wire::{Conditions, Stream, Wire, as_root};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

fn wire(conditions: &str) -> Wire {
    let conditions = if conditions.is_empty() { Conditions::default() } else { conditions.parse().unwrap() };
    Wire::new(conditions, conditions, 1_500).unwrap()
}

/// A UDP socket at an end that waits long, but not for ever.
fn socket(wire: &Wire, end: usize, address: IpAddr) -> UdpSocket {
    let socket = wire.namespace(end).run(move || UdpSocket::bind(SocketAddr::new(address, 0))).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// Waits for a condition.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn datagrams_cross_in_both_families_and_no_sooner_than_the_delay() {
    if !as_root() {
        return;
    }
    let wire = wire("delay=30ms");
    for address in [Wire::address, Wire::address_v6] {
        let (here, there) = (socket(&wire, 0, address(&wire, 0)), socket(&wire, 1, address(&wire, 1)));
        let (mut buffer, start) = ([0; 64], Instant::now());
        here.send_to(b"question", there.local_addr().unwrap()).unwrap();
        let (len, source) = there.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], source), (&b"question"[..], here.local_addr().unwrap()));
        there.send_to(b"answer", source).unwrap();
        let len = here.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"answer");
        assert!(start.elapsed() >= Duration::from_millis(60), "{:?}", start.elapsed());
    }
    // A packet is counted just after it was handed over.
    let delivered = || [wire.counts(0).delivered, wire.counts(1).delivered];
    until("both have delivered", || delivered().iter().all(|count| *count >= 2));
    assert_eq!(delivered(), [2, 2], "nothing else was on the wire");
}

#[test]
fn what_is_lost_is_counted_and_the_rest_arrives() {
    if !as_root() {
        return;
    }
    let wire = wire("loss=20%");
    let (here, there) = (socket(&wire, 0, wire.address(0)), socket(&wire, 1, wire.address(1)));
    let to = there.local_addr().unwrap();
    let mut buffer = [0; 64];
    let mut received = 0;
    for number in 0..1_000u32 {
        here.send_to(&number.to_be_bytes(), to).unwrap();
        until("the packet is judged", || {
            let counts = wire.counts(0);
            counts.packets == u64::from(number) + 1 && counts.delivered + counts.lost == counts.packets
        });
        if wire.counts(0).delivered > received {
            assert_eq!(there.recv(&mut buffer).unwrap(), 4);
            assert_eq!(buffer[..4], number.to_be_bytes());
            received += 1;
        }
    }
    // One seed: 20 % of 1,000, give or take five standard deviations.
    assert!((137..264).contains(&wire.counts(0).lost), "{:?}", wire.counts(0));
}

#[test]
fn a_stream_survives_a_black_out_and_new_conditions_and_keeps_every_byte() {
    if !as_root() {
        return;
    }
    let wire = wire("delay=1ms");
    let address = SocketAddr::new(wire.address(1), 0);
    let listener = wire.namespace(1).run(move || TcpListener::bind(address)).unwrap();
    let to = listener.local_addr().unwrap();
    let data: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = data.clone();
    let sender = wire.namespace(0).spawn(move || TcpStream::connect(to).unwrap().write_all(&sent).unwrap());
    let (mut connection, _) = listener.accept().unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    let mut received = vec![0; data.len()];
    connection.read_exact(&mut received[..100_000]).unwrap();
    let lost = wire.counts(0).lost + wire.counts(1).lost;
    wire.black_out(Duration::from_millis(300));
    let worse: Conditions = "reorder=5%,duplicate=5%,delay=1ms".parse().unwrap();
    wire.set_conditions(worse, worse);
    connection.read_exact(&mut received[100_000..]).unwrap();
    sender.join().unwrap();
    assert!(received == data, "every byte is right");
    assert!(wire.counts(0).lost + wire.counts(1).lost > lost, "the black-out took something");
    assert!(wire.counts(0).delivered + wire.counts(0).lost > wire.counts(0).packets, "some came twice");
}

#[test]
fn a_stream_of_the_kernel_keeps_to_the_rate() {
    if !as_root() {
        return;
    }
    let wire = wire("rate=40mbit,delay=1ms");
    let (warm_up, duration) = (Duration::from_millis(300), Duration::from_secs(2));
    let goodput = wire.goodput(Stream { congestion: "cubic", warm_up, duration }).unwrap();
    // 5 MB/s less headers; what stands in the receiver's queue at the start of the clock is little.
    assert!((1e6..5.5e6).contains(&goodput.bytes_per_s()), "{goodput:?}");
    let unknown = Stream { congestion: "no such one", warm_up, duration };
    wire.goodput(unknown).unwrap_err();
}

#[test]
fn programs_run_at_an_end_and_nothing_is_left_behind() {
    if !as_root() {
        return;
    }
    let wire = wire("");
    let output = wire.command(1, "ip").args(["address", "show", "dev", "wire"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&wire.address(1).to_string()) && text.contains("mtu 1500"), "{text}");
    wire.set_mtu(1, 1_400).unwrap();
    let output = wire.command(1, "ip").args(["link", "show", "dev", "wire"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("mtu 1400"));
    let error = wire.namespace(0).ip("link set nothing up").unwrap_err().to_string();
    assert!(error.contains("nothing"), "{error}");

    let names = [0, 1].map(|end| wire.namespace(end).name().to_owned());
    let list = || std::fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(list().filter(|name| names.iter().any(|known| name == known.as_str())).count(), 2);
    drop(wire);
    assert!(!list().any(|name| names.iter().any(|known| name == known.as_str())), "{names:?} are still there");
}
