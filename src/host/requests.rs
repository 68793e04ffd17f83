//! What programs ask for, one function for each request.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use unisockets_descriptors::{About, Family, Fault, Kind, Name, Option as Setting, Prefix, Reply, Request, State};
use unisockets_stack::{Error, Readiness};

use super::errors::{fault, system};
use super::stream::{self, Label, Pair, Plug};
use super::{Entry, Inner, Outcome, Role, bound, datagram, options};
use crate::tcp::Socket;

/// How much later than the kernel a node may learn that a program has ended.
const HEARD_LATE: Duration = Duration::from_millis(20);
/// How long a bind waits for a socket that nobody holds any more.
const FREED_LIMIT: Duration = Duration::from_secs(1);

/// What a new socket is made of.
struct Wanted {
    kind: Kind,
    family: Family,
    address: SocketAddr,
    options: Vec<Setting>,
}

fn ok() -> Outcome {
    Ok((Reply::Ok, None))
}

/// The program's descriptor is not one of this node's: it outlived the node that made it, or is closed.
fn stale() -> Fault {
    Fault { errno: libc::ENOTCONN, text: "the node of this descriptor has ended".to_owned() }
}

impl Inner {
    pub(super) async fn handle(self: &Arc<Self>, request: Request) -> Outcome {
        match request {
            Request::About => Ok((Reply::About(self.about()), None)),
            Request::Bind { kind, family, address, options } => {
                self.bind(&Wanted { kind, family, address, options }).await
            }
            Request::Listen { id, backlog } => self.listen(id, backlog),
            Request::Connect { id, kind, family, address, options } => {
                self.connect(id, &Wanted { kind, family, address, options })
            }
            Request::Disconnect { id } => self.disconnect(id),
            Request::Error { id } => Ok((Reply::Error { errno: self.take_error(id) }, None)),
            Request::SetOption { id, option } => {
                options::set(&*self.entry_or_closed(id)?, &option)?;
                ok()
            }
            Request::GetOption { id, level, name } => {
                let value = options::get(&*self.entry_or_closed(id)?, level, name)?;
                Ok((Reply::Option { value }, None))
            }
            Request::Closed { id } => {
                if let Some(Role::Datagram(shared)) = self.entry(id).map(|entry| entry.role.clone()) {
                    shared.look();
                }
                ok()
            }
            Request::Resolve { name } => self.resolve(&name).await,
            Request::Reverse { address } => self.reverse(address).await,
            Request::Status => {
                let json = serde_json::to_string(&self.node.status()).expect("a status has a JSON form");
                Ok((Reply::Status { json }, None))
            }
            Request::Capture { path } => self.capture(path),
            Request::Leave => {
                self.leaving.notify_one();
                ok()
            }
            // Whoever answers knows which program that is.
            Request::Forget => ok(),
        }
    }

    fn about(&self) -> About {
        let node = &self.node;
        let prefix = |(address, len)| Prefix { address, len };
        About {
            instance: self.instance,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            network: node.network().to_owned(),
            name: node.name(),
            addresses: vec![IpAddr::V4(node.ipv4()), IpAddr::V6(node.ipv6())],
            prefixes: node.prefixes().into_iter().map(prefix).collect(),
        }
    }

    /// Makes a socket of the stack with a program's options.
    fn open(&self, wanted: &Wanted, role: Role) -> Result<Entry, Fault> {
        if self.entries().len() >= super::SOCKETS_MAX {
            return Err(fault(Error::NoBuffers));
        }
        let socket = Socket::open(&self.node, stack_kind(wanted.kind), stack_family(wanted.family));
        let socket = Arc::new(socket.map_err(|error| system(&error))?);
        let (kind, family) = (wanted.kind, wanted.family);
        let entry = Entry { socket, kind, family, kept: Mutex::default(), role };
        for option in &wanted.options {
            // The kernel took it when it was set: it is no reason for this call to fail.
            let _ = options::set(&entry, option);
        }
        Ok(entry)
    }

    /// Finds a socket. A connection that has ended is a socket in CLOSED to the program that still holds it: like
    /// Linux's it takes options, which change nothing any more.
    fn entry_or_closed(&self, id: u64) -> Result<Arc<Entry>, Fault> {
        if let Some(entry) = self.entry(id) {
            return Ok(entry);
        }
        if !self.has_made(id) {
            return Err(stale());
        }
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let closed = Wanted { kind: Kind::Tcp, family: Family::V6, address, options: Vec::new() };
        self.open(&closed, Role::Stream).map(Arc::new)
    }

    async fn bind(self: &Arc<Self>, wanted: &Wanted) -> Outcome {
        let entry = self.open(wanted, Role::Stream)?;
        let id = self.new_id();
        let stack_id = entry.socket.id;
        let bind = || {
            entry.socket.driver.with(|state, _, _| {
                state.core.stack.bind(stack_id, wanted.address)?;
                state.core.stack.local_address(stack_id)
            })
        };
        let mut bound = bind();
        if bound == Err(Error::AddressInUse) {
            self.free(wanted.kind, wanted.address.port()).await;
            bound = bind();
        }
        let address = bound.map_err(fault)?;
        match wanted.kind {
            Kind::Tcp => self.bind_stream(id, entry, address),
            Kind::Udp => self.open_datagram(id, entry, address).map(|(descriptor, _)| (Reply::Ok, Some(descriptor))),
        }
    }

    /// Lets go of the port of a program that is gone. The kernel frees ports before it says that a process has ended;
    /// a node learns of it a moment later, and of datagram sockets by looking only.
    async fn free(&self, kind: Kind, port: u16) {
        if kind == Kind::Tcp {
            let _ = tokio::time::timeout(HEARD_LATE, self.changed.notified()).await;
            return;
        }
        let mut abandoned: Vec<u64> = Vec::new();
        for (id, entry) in self.entries().iter() {
            if let Role::Datagram(shared) = &entry.role
                && shared.port() == port
                && shared.look()
            {
                abandoned.push(*id);
            }
        }
        let gone = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if !abandoned.iter().any(|id| self.entries().contains_key(id)) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(FREED_LIMIT, gone).await;
    }

    fn bind_stream(self: &Arc<Self>, id: u64, entry: Entry, address: SocketAddr) -> Outcome {
        let (program, host) =
            bound::descriptor(&bound::name(self, id, entry.family, address)).map_err(|error| system(&error))?;
        let shared = Arc::new(bound::Bound::default());
        let entry = self.insert(id, Entry { role: Role::Bound(Arc::clone(&shared)), ..entry });
        tokio::spawn(bound::serve(Arc::clone(self), id, entry, shared, host));
        Ok((Reply::Ok, Some(program)))
    }

    fn open_datagram(
        self: &Arc<Self>,
        id: u64,
        entry: Entry,
        address: SocketAddr,
    ) -> Result<(OwnedFd, Arc<datagram::Datagram>), Fault> {
        let (family, instance) = (entry.family, self.instance);
        let name = Name { state: State::Datagram, family, address, destination: None, instance, id, serial: 0 };
        let (program, ingress) = datagram::descriptors(&name).map_err(|error| system(&error))?;
        let shared = Arc::new(datagram::Datagram::new(name));
        let entry = self.insert(id, Entry { role: Role::Datagram(Arc::clone(&shared)), ..entry });
        tokio::spawn(datagram::serve(Arc::clone(self), id, entry, Arc::clone(&shared), ingress));
        Ok((program, shared))
    }

    fn listen(&self, id: u64, backlog: u32) -> Outcome {
        let entry = self.entry(id).ok_or_else(stale)?;
        let Role::Bound(shared) = &entry.role else {
            return Err(fault(if entry.kind == Kind::Udp { Error::NotSupported } else { Error::Invalid }));
        };
        let len = usize::try_from(backlog).unwrap_or(usize::MAX);
        let socket = entry.socket.id;
        entry.socket.driver.with(|state, _, _| state.core.stack.listen(socket, len)).map_err(fault)?;
        shared.listen(backlog);
        ok()
    }

    fn connect(self: &Arc<Self>, id: Option<u64>, wanted: &Wanted) -> Outcome {
        let known = id.map(|id| self.entry(id).map(|entry| (id, entry)).ok_or_else(stale)).transpose()?;
        match (wanted.kind, known) {
            (Kind::Udp, Some((_, entry))) => self.connect_datagram(&entry, wanted.address),
            (Kind::Udp, None) => Err(fault(Error::Invalid)),
            (Kind::Tcp, Some((id, entry))) => {
                let Role::Bound(shared) = &entry.role else {
                    return Err(fault(Error::IsConnected));
                };
                let outcome = self.start(id, &entry, wanted.address)?;
                shared.take();
                Ok(outcome)
            }
            (Kind::Tcp, None) => {
                let entry = Arc::new(self.open(wanted, Role::Stream)?);
                self.start(self.new_id(), &entry, wanted.address)
            }
        }
    }

    /// Starts a connection, and makes its descriptor.
    fn start(self: &Arc<Self>, id: u64, entry: &Entry, remote: SocketAddr) -> Outcome {
        let socket = Arc::clone(&entry.socket);
        let started = socket.driver.with(|state, now, _| match state.core.stack.connect(now, socket.id, remote) {
            Ok(()) | Err(Error::InProgress) => state.core.stack.local_address(socket.id),
            Err(error) => Err(error),
        });
        let local = started.map_err(fault)?;
        let label = Label { id, family: entry.family, instance: self.instance };
        // To this node itself a connection stands at once, and the program that has accepted it may know already.
        let now = socket.driver.look(|state| state.core.stack.readiness(socket.id));
        let stands = now.contains(Readiness::WRITABLE) && !now.intersects(Readiness::ERROR | Readiness::HANG_UP);
        let make = || {
            let pair = Pair::new(if stands { Plug::Open } else { Plug::Full })?;
            pair.name_program(&label.name(local, 1))?;
            if stands {
                pair.name_host(&label.name(socket.peer_addr()?, 2))?;
            }
            Ok(pair.split())
        };
        let (program, host) = make().map_err(|error: std::io::Error| system(&error))?;
        let kept = entry.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let (kind, family) = (entry.kind, entry.family);
        let socket = Arc::clone(&entry.socket);
        self.insert(
            id,
            Entry { socket: Arc::clone(&socket), kind, family, kept: Mutex::new(kept), role: Role::Stream },
        );
        tokio::spawn(stream::carry(Arc::clone(self), label, socket, host));
        Ok((Reply::Ok, Some(program)))
    }

    fn connect_datagram(&self, entry: &Entry, address: SocketAddr) -> Outcome {
        let Role::Datagram(shared) = &entry.role else {
            return Err(fault(Error::NotSupported));
        };
        let socket = &entry.socket;
        shared.disconnect(socket);
        socket.driver.with(|state, now, _| state.core.stack.connect(now, socket.id, address)).map_err(fault)?;
        let address = socket.peer_addr().map_err(|error| system(&error))?;
        let name = shared.connect(socket, address).map_err(|error| system(&error))?;
        Ok((Reply::Peer { name }, None))
    }

    fn disconnect(&self, id: u64) -> Outcome {
        let entry = self.entry(id).ok_or_else(stale)?;
        let Role::Datagram(shared) = &entry.role else {
            return Err(fault(Error::NotSupported));
        };
        let socket = &entry.socket;
        shared.disconnect(socket);
        socket.driver.with(|state, _, _| state.core.stack.disconnect(socket.id)).map_err(fault)?;
        ok()
    }

    fn take_error(&self, id: u64) -> i32 {
        let Some(entry) = self.entry(id) else {
            return self.ended().take(id);
        };
        match &entry.role {
            Role::Datagram(shared) => shared.take_error(),
            // Its task takes the error, and leaves it to be asked for.
            Role::Stream | Role::Bound(_) => self.ended().take(id),
        }
    }

    async fn resolve(&self, name: &str) -> Outcome {
        let addresses = match self.node.resolve(name).await {
            Ok(member) => vec![IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6)],
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            // No answer, or none that can be believed: that nobody is there has not been said.
            Err(error) => return Err(Fault { errno: libc::EAGAIN, text: error.to_string() }),
        };
        Ok((Reply::Addresses { addresses }, None))
    }

    async fn reverse(&self, address: IpAddr) -> Outcome {
        let address = address.to_canonical();
        let name = match self.node.is_in_network(address) {
            true => self.node.resolve(&address.to_string()).await.ok().and_then(|member| member.name),
            false => None,
        };
        Ok((Reply::Name { name }, None))
    }

    fn capture(&self, path: Option<String>) -> Outcome {
        let path = path.map(std::path::PathBuf::from);
        self.node.capture(path.as_deref()).map_err(|error| system(&error))?;
        ok()
    }
}

fn stack_kind(kind: Kind) -> unisockets_stack::Kind {
    match kind {
        Kind::Tcp => unisockets_stack::Kind::Tcp,
        Kind::Udp => unisockets_stack::Kind::Udp,
    }
}

fn stack_family(family: Family) -> unisockets_stack::Family {
    match family {
        Family::V4 => unisockets_stack::Family::V4,
        Family::V6 => unisockets_stack::Family::V6,
    }
}
