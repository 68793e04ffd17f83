//! Two namespaces, and the wire between them.

use std::io::{self, PipeWriter};
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use unisockets_link::fault::Conditions;

use crate::pump::{Counts, Pump};
use crate::tun::Tun;
use crate::{Goodput, Namespace, Stream};

/// The device's name in both namespaces.
const DEVICE: &str = "wire";
/// The two ends' addresses: for benchmarks only (RFC 2544, appendix C.2.2; RFC 5180, section 8).
const V4: [&str; 2] = ["198.18.0.1", "198.18.0.2"];
/// See [`V4`].
const V6: [&str; 2] = ["2001:2::1", "2001:2::2"];

/// A wire between two kernels; dropping it removes everything.
pub struct Wire {
    namespaces: [Namespace; 2],
    /// Direction 0 leads from end 0 to end 1.
    pumps: [Arc<Pump>; 2],
    threads: Vec<JoinHandle<()>>,
    stop: Option<PipeWriter>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Wire {
    /// Makes a wire: `there` are the conditions from end 0 to end 1, `back` those from end 1 to end 0, and `mtu` is
    /// the devices' in bytes, at least 1,280.
    ///
    /// # Errors
    /// What forbids namespaces or devices here.
    pub fn new(there: Conditions, back: Conditions, mtu: usize) -> io::Result<Wire> {
        let namespaces = [Namespace::new()?, Namespace::new()?];
        let tun = |end: usize| {
            let namespace: &Namespace = &namespaces[end];
            let tun = Tun::new(namespace, DEVICE, mtu)?;
            // A default route, so that programs which ask for the way to the world find this one.
            namespace.ip(&format!("route add 0.0.0.0/0 dev {DEVICE}\nroute add ::/0 dev {DEVICE}"))?;
            namespace.add_addresses(DEVICE, &[&format!("{}/30", V4[end]), &format!("{}/64", V6[end])])?;
            Ok::<Arc<Tun>, io::Error>(Arc::new(tun))
        };
        let tuns = [tun(0)?, tun(1)?];
        let pumps = [Arc::new(Pump::new(there, 1)), Arc::new(Pump::new(back, 2))];
        let (reader, writer) = io::pipe()?;
        let mut threads = Vec::new();
        for (from, pump) in pumps.iter().enumerate() {
            let (pump, source, target) = (Arc::clone(pump), Arc::clone(&tuns[from]), Arc::clone(&tuns[1 - from]));
            let stop = reader.try_clone()?;
            let named = std::thread::Builder::new().name(format!("wire from {from}"));
            threads.push(named.spawn(move || pump.run(&source, &target, &stop))?);
        }
        Ok(Wire { namespaces, pumps, threads, stop: Some(writer) })
    }

    /// Returns the namespace of an end, 0 or 1.
    pub fn namespace(&self, end: usize) -> &Namespace {
        &self.namespaces[end]
    }

    /// Returns the IPv4 address of an end.
    pub fn address(&self, end: usize) -> IpAddr {
        V4[end].parse().expect("a literal address")
    }

    /// Returns the IPv6 address of an end.
    pub fn address_v6(&self, end: usize) -> IpAddr {
        V6[end].parse().expect("a literal address")
    }

    /// Returns a command that runs a program at an end.
    pub fn command(&self, end: usize, program: &str) -> Command {
        self.namespaces[end].command(program)
    }

    /// Changes the conditions of both directions for what is sent from now on.
    pub fn set_conditions(&self, there: Conditions, back: Conditions) {
        self.pumps[0].set_conditions(there);
        self.pumps[1].set_conditions(back);
    }

    /// Loses everything that is sent in either direction from now on for `duration`.
    pub fn black_out(&self, duration: Duration) {
        for pump in &self.pumps {
            pump.black_out(duration);
        }
    }

    /// Changes the MTU of the device of an end, in bytes: the largest packet that its kernel sends.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn set_mtu(&self, end: usize, mtu: usize) -> io::Result<()> {
        self.namespaces[end].ip(&format!("link set {DEVICE} mtu {mtu}"))
    }

    /// Returns what the direction that leads away from an end has carried.
    pub fn counts(&self, from: usize) -> Counts {
        self.pumps[from].counts()
    }

    /// Sends one stream of the kernels' TCP from end 0 to end 1 and measures it.
    ///
    /// # Errors
    /// Those of the sockets; a congestion control that the kernel does not have.
    pub fn goodput(&self, stream: Stream) -> io::Result<Goodput> {
        self.goodput_to(self.address(1), stream)
    }

    /// The same to another address of end 1, such as one that a tunnel leads to.
    ///
    /// # Errors
    /// Those of [`Wire::goodput`].
    pub fn goodput_to(&self, address: IpAddr, stream: Stream) -> io::Result<Goodput> {
        crate::stream::measure(self, address, stream)
    }
}
