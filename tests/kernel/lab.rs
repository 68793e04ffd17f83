//! A kernel in a namespace of its own, and our stack on a TUN device in it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use unisockets_wire::{Conditions, Namespace, Tun};

use crate::member::{LIMIT, Member};
use crate::random::pattern;

/// Addresses for benchmarks only (RFC 2544, appendix C.2.2; RFC 5180, section 8): the kernel's end, and ours.
const KERNEL: [&str; 2] = ["198.18.0.1", "2001:2::1"];
const OURS: [&str; 2] = ["198.18.0.2", "2001:2::2"];
/// The far network, behind the kernel that routes.
const ROUTER: [&str; 2] = ["198.18.1.1", "2001:2:0:1::1"];
const FAR: [&str; 2] = ["198.18.1.2", "2001:2:0:1::2"];
/// Our device's MTU, in bytes.
pub const MTU: usize = 1_500;
/// Bytes of one call of a kernel's program.
const CHUNK_LEN: usize = 32 * 1024;

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Both families.
pub const FAMILIES: [usize; 2] = [0, 1];

/// A wire that does everything that wires do (`unisockets_wire::Conditions`).
pub const BAD: &str = "loss=1%,delay=5ms,reorder=1%,duplicate=1%,corrupt=1%";

/// Both families over a good wire and over a bad one.
pub fn wires() -> impl Iterator<Item = (Lab, usize)> {
    ["", BAD].into_iter().flat_map(|conditions| FAMILIES.into_iter().map(|family| (Lab::new(conditions), family)))
}

/// A kernel and a member, joined by a device.
pub struct Lab {
    pub member: Member,
    /// The kernel that the programs below run on.
    pub kernel: Namespace,
    /// The kernel in between, if there is one.
    router: Option<Namespace>,
    peers: [&'static str; 2],
}

/// Gives a kernel's device its addresses.
fn add_addresses(kernel: &Namespace, device: &str, [v4, v6]: [&str; 2]) {
    kernel.add_addresses(device, &[&format!("{v4}/24"), &format!("{v6}/64")]).unwrap();
}

impl Lab {
    /// A kernel at the other end of our device.
    pub fn new(conditions: &str) -> Lab {
        let kernel = Namespace::new().unwrap();
        let tun = Tun::new(&kernel, "tun", MTU).unwrap();
        add_addresses(&kernel, "tun", KERNEL);
        let member = Member::new(tun, OURS.map(address), &KERNEL.map(address), MTU);
        if !conditions.is_empty() {
            member.set_conditions(conditions.parse::<Conditions>().unwrap());
        }
        Lab { member, kernel, router: None, peers: KERNEL }
    }

    /// A kernel that routes between our device and another kernel.
    pub fn routed() -> Lab {
        let (router, kernel) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let tun = Tun::new(&router, "tun", MTU).unwrap();
        add_addresses(&router, "tun", KERNEL);
        router.ip(&format!("link add far type veth peer name near netns {}", kernel.name())).unwrap();
        router.ip("link set far up").unwrap();
        kernel.ip("link set near up").unwrap();
        add_addresses(&router, "far", ROUTER);
        add_addresses(&kernel, "near", FAR);
        let [v4, v6] = ROUTER;
        kernel.ip(&format!("route add 0.0.0.0/0 via {v4}\nroute add ::/0 via {v6}")).unwrap();
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            router.sysctl(key, "1").unwrap();
        }
        let member = Member::new(tun, OURS.map(address), &FAR.map(address), MTU);
        let lab = Lab { member, kernel, router: Some(router), peers: FAR };
        FAMILIES.into_iter().for_each(|family| lab.settle(family));
        lab
    }

    /// Waits until our refusals come through to the kernel: links and routes become usable a little after `ip` says so.
    fn settle(&self, family: usize) {
        let nobody = SocketAddr::new(self.ours(family), 9);
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.kernel.run(move || TcpStream::connect_timeout(&nobody, Duration::from_secs(1)));
            match answer.map_err(|error| error.kind()) {
                Err(ErrorKind::ConnectionRefused) => return,
                other => assert!(Instant::now() < deadline, "the kernel does not reach us: {other:?}"),
            }
        }
    }

    /// Makes the link behind the router smaller, at both its ends: a virtual one drops, without a word, what is longer
    /// than the receiving end's MTU in bytes.
    pub fn shrink_far(&self, mtu: usize) {
        self.router.as_ref().unwrap().ip(&format!("link set far mtu {mtu}")).unwrap();
        self.kernel.ip(&format!("link set near mtu {mtu}")).unwrap();
    }

    /// Makes our device smaller for the kernel that routes.
    pub fn shrink_near(&self, mtu: usize) {
        self.router.as_ref().unwrap().ip(&format!("link set tun mtu {mtu}")).unwrap();
    }

    pub fn ours(&self, family: usize) -> IpAddr {
        address(OURS[family])
    }

    pub fn theirs(&self, family: usize) -> IpAddr {
        address(self.peers[family])
    }

    /// A listener of the kernel; its backlog takes a thousand at once.
    pub fn kernel_listener(&self, family: usize) -> (TcpListener, SocketAddr) {
        let to = SocketAddr::new(self.theirs(family), 0);
        let listener = self.kernel.run(move || TcpListener::bind(to)).unwrap();
        rustix::net::listen(listener.as_fd(), 2_048).unwrap();
        let to = listener.local_addr().unwrap();
        (listener, to)
    }

    /// A connection that the kernel has made to us: its end and ours.
    pub fn accepted(&self, family: usize) -> (TcpStream, unisockets_stack::SocketId) {
        let listener = self.member.listen(SocketAddr::new(self.ours(family), 0), 16);
        let to = self.member.call(|stack, _| stack.local_address(listener)).unwrap();
        let connecting = self.kernel.spawn(move || TcpStream::connect_timeout(&to, LIMIT));
        let socket = self.member.accept(listener);
        self.member.close(listener);
        (limited(connecting.join().unwrap().unwrap()), socket)
    }

    /// A connection that we have made to the kernel: its end and ours.
    pub fn connected(&self, family: usize) -> (TcpStream, unisockets_stack::SocketId) {
        let (listener, to) = self.kernel_listener(family);
        let socket = self.member.connect(to).unwrap();
        (limited(listener.accept().unwrap().0), socket)
    }

    /// A UDP socket of the kernel.
    pub fn kernel_udp(&self, family: usize) -> UdpSocket {
        let own = SocketAddr::new(self.theirs(family), 0);
        let socket = self.kernel.run(move || UdpSocket::bind(own)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }
}

/// Lets no call of a program on the kernel wait for ever.
pub fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Writes the pattern of `seed` in a thread, then shuts the direction.
pub fn writes(stream: &TcpStream, seed: u64, len: u64) -> JoinHandle<()> {
    let mut stream = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let (mut offset, mut chunk) = (0, vec![0; CHUNK_LEN]);
        while offset < len {
            let part = (len - offset).min(CHUNK_LEN as u64);
            pattern(seed, offset, &mut chunk[..part as usize]);
            stream.write_all(&chunk[..part as usize]).expect("the kernel writes");
            offset += part;
        }
        stream.shutdown(std::net::Shutdown::Write).expect("the kernel shuts its direction");
    })
}

/// Reads to the end in a thread and checks every byte.
pub fn reads(stream: &TcpStream, seed: u64, len: u64) -> JoinHandle<()> {
    let mut stream = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let (mut offset, mut chunk, mut wanted) = (0, vec![0; CHUNK_LEN], vec![0; CHUNK_LEN]);
        loop {
            let part = stream.read(&mut chunk).expect("the kernel reads");
            if part == 0 {
                break assert_eq!(offset, len, "the stream is as long as it should be");
            }
            pattern(seed, offset, &mut wanted[..part]);
            assert!(chunk[..part] == wanted[..part], "wrong bytes for the kernel behind {offset}");
            offset += part as u64;
        }
    })
}
