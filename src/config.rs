//! What a node is told before it joins, and the files that it keeps.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use unisockets_link::fault::Conditions;
use unisockets_signaling::identity::KeyPair;
use unisockets_signaling::network::{BadName, parse_member_name, parse_name};
use unisockets_signaling::pins::Pins;

/// How long joining may take by default.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a key that is in use is tried, and the pause between: a second and a half.
const LOCK_TRIES: u32 = 30;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The settings of a node; [`Config::new`] has sensible ones.
#[derive(Debug, Clone)]
pub struct Config {
    /// The signaling server: `ws://HOST:PORT` or `wss://HOST`.
    pub signal: String,
    /// The network's name.
    pub network: String,
    /// The network's secret. Without one anybody who reaches the server can join.
    pub secret: Option<String>,
    /// The name that the node would like.
    pub name: Option<String>,
    /// The IPv4 address that the node would like.
    pub ipv4: Option<Ipv4Addr>,
    /// Where the node's key comes from.
    pub key: Key,
    /// Writes every packet to a file in the pcapng format.
    pub capture: Option<PathBuf>,
    /// Bytes of each packet that the capture keeps.
    pub capture_snap_len: usize,
    /// Uses relays only, so that peers do not learn this machine's addresses (threat T12): other candidates are neither
    /// gathered nor told, and checks of the peer's are answered through the relay alone. Needs a TURN server, of
    /// signaling's or of [`Config::ice_servers`]; without one no link is made, and the incidents of
    /// [`crate::Status`] say so. Signaling and the relay do see the address.
    pub relay_only: bool,
    /// Local addresses for links; none means every interface, or loopback if signaling is there.
    pub bind: Vec<SocketAddr>,
    /// STUN and TURN servers besides those that signaling names. They are reached over UDP, TURN with the user and the
    /// password of long-term credentials (RFC 8489, section 9.2).
    pub ice_servers: Vec<unisockets_link::IceServer>,
    /// How long joining may take.
    pub join_timeout: Duration,
    /// Holds the kernel's socket buffers down, in bytes; for measuring only.
    pub socket_buffer_max: Option<usize>,
    /// Puts every link on a bad wire, below the data channels and both ways: how does a program do on a network
    /// that is slow, far or lossy?
    pub fault: Option<Conditions>,
}

/// Where a node's key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Key {
    /// A named node keeps its key in the user's data folder; another one makes a key for this life.
    #[default]
    Automatic,
    /// A key for this life; the lease is given back at the end.
    Ephemeral,
    /// A file, made if it is not there.
    File(PathBuf),
    /// These 32 secret bytes.
    Seed([u8; 32]),
}

impl Config {
    /// Settings for a nameless node on the network `default` of a server.
    pub fn new(signal: impl Into<String>) -> Config {
        Config {
            signal: signal.into(),
            network: "default".to_owned(),
            secret: None,
            name: None,
            ipv4: None,
            key: Key::Automatic,
            capture: None,
            capture_snap_len: unisockets_stack::PACKET_LEN_MAX,
            relay_only: false,
            bind: Vec::new(),
            ice_servers: Vec::new(),
            join_timeout: JOIN_TIMEOUT,
            socket_buffer_max: None,
            fault: None,
        }
    }

    /// Sets the name that the node would like.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Config {
        self.name = Some(name.into());
        self
    }

    /// Makes the node forget its key and give its lease back at the end.
    #[must_use]
    pub fn ephemeral(mut self) -> Config {
        self.key = Key::Ephemeral;
        self
    }

    /// Sets the network, and its secret.
    #[must_use]
    pub fn network(mut self, name: impl Into<String>, secret: Option<String>) -> Config {
        self.network = name.into();
        self.secret = secret;
        self
    }
}

/// A key or pin file cannot be used; the text says what to do.
#[derive(Debug)]
pub struct KeyError(String);

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeyError {}

impl From<BadName> for KeyError {
    fn from(bad: BadName) -> Self {
        KeyError(bad.to_string())
    }
}

/// Returns the folder for what belongs to this user and stays.
pub fn data_folder() -> PathBuf {
    let home = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = home("XDG_DATA_HOME").or_else(|| home("HOME").map(|home| home.join(".local/share")));
    base.unwrap_or_else(std::env::temp_dir).join("unisockets")
}

/// Returns the file that keeps the key of a named node.
pub fn key_path(network: &str, name: &str) -> PathBuf {
    data_folder().join("keys").join(format!("{network}.{name}.key"))
}

/// A node's key with the files that it keeps.
pub(crate) struct Identity {
    pub(crate) pair: KeyPair,
    pub(crate) ephemeral: bool,
    pub(crate) pins: Pins,
    pins_path: Option<PathBuf>,
    /// Holds the lock on the key's file as long as it lives.
    _lock: Option<File>,
}

fn random_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("the operating system has a random source");
    seed
}

impl Identity {
    pub(crate) fn load(config: &Config) -> Result<Identity, KeyError> {
        let transient = |seed: [u8; 32], ephemeral| Identity {
            pair: KeyPair::from_seed(&seed),
            ephemeral,
            pins: Pins::default(),
            pins_path: None,
            _lock: None,
        };
        let path = match (&config.key, &config.name) {
            (Key::Seed(seed), _) => return Ok(transient(*seed, false)),
            (Key::Ephemeral, _) | (Key::Automatic, None) => return Ok(transient(random_seed(), true)),
            (Key::File(path), _) => path.clone(),
            (Key::Automatic, Some(name)) => key_path(&parse_name(&config.network)?, &parse_member_name(name)?),
        };
        let (seed, lock) = open_key(&path)?;
        let pins_path = pins_path(&path);
        let pins = load_pins(&pins_path)?;
        Ok(Identity {
            pair: KeyPair::from_seed(&seed),
            ephemeral: false,
            pins,
            pins_path: Some(pins_path),
            _lock: Some(lock),
        })
    }

    /// Returns where pins are kept, if they are.
    pub(crate) fn pins_path(&self) -> Option<PathBuf> {
        self.pins_path.clone()
    }
}

/// Returns the file of pins beside a key's.
fn pins_path(key: &Path) -> PathBuf {
    if key.extension().is_some_and(|extension| extension == "key") {
        return key.with_extension("pins.json");
    }
    let mut path = key.as_os_str().to_owned();
    path.push(".pins.json");
    path.into()
}

/// Forgets the key that is pinned to a subject beside a node's key; returns whether there was one.
///
/// # Errors
/// [`KeyError`] if the node runs, which would write down again what it knows, or if a file cannot be used.
pub fn forget_pin(key: &Path, subject: &str) -> Result<bool, KeyError> {
    let path = pins_path(key);
    let mut pins = load_pins(&path)?;
    if !pins.forget(subject) {
        return Ok(false);
    }
    let lock = File::open(key);
    if lock.as_ref().is_ok_and(|file| !is_locked(file)) {
        let key = key.display();
        return Err(KeyError(format!("the node of {key} runs, and knows what is pinned: end it, then try again")));
    }
    save_pins(&path, &pins)?;
    Ok(true)
}

/// Returns the key files in a folder that have pins beside them.
///
/// # Errors
/// [`KeyError`] if the folder cannot be read.
pub fn keys_with_pins(folder: &Path) -> Result<Vec<PathBuf>, KeyError> {
    let entries = fs::read_dir(folder).map_err(|error| KeyError(format!("{}: {error}", folder.display())))?;
    let keys = entries.flatten().map(|entry| entry.path());
    Ok(keys.filter(|key| !key.to_string_lossy().ends_with(".json") && pins_path(key).is_file()).collect())
}

/// Reads a pin file; one that is not there is empty.
fn load_pins(path: &Path) -> Result<Pins, KeyError> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|error| KeyError(format!("{} is damaged: {error}; move it away to start anew", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Pins::default()),
        Err(error) => Err(KeyError(format!("cannot read {}: {error}", path.display()))),
    }
}

/// Writes a pin file so that a crash leaves the old or the new one.
pub(crate) fn save_pins(path: &Path, pins: &Pins) -> Result<(), KeyError> {
    let failed = |error: std::io::Error| KeyError(format!("cannot write {}: {error}", path.display()));
    let text = serde_json::to_string_pretty(pins).expect("pins have a JSON form");
    let new = path.with_extension("json.new");
    fs::write(&new, text).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}

/// Locks a key's file. A node that is just leaving gives it back in a moment.
fn is_locked(file: &File) -> bool {
    (0..LOCK_TRIES).any(|number| {
        if number > 0 {
            std::thread::sleep(LOCK_PAUSE);
        }
        file.try_lock().is_ok()
    })
}

/// Opens a key's file, or makes it, and locks it: one key, one live node.
fn open_key(path: &Path) -> Result<([u8; 32], File), KeyError> {
    let failed = |error: std::io::Error| KeyError(format!("cannot use the key file {}: {error}", path.display()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(KeyError(format!("{} is no file; give another one with --key", path.display())));
    }
    if !is_locked(&file) {
        let path = path.display();
        return Err(KeyError(format!(
            "the key {path} is in use by another program, or by the node of an ended one that still delivers what was \
             written; wait for it to end, or give this one another --name or --key"
        )));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    if text.is_empty() {
        let seed = random_seed();
        file.write_all(format!("{}\n", hex(&seed)).as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        return Ok((seed, file));
    }
    let seed = unhex(text.trim()).ok_or_else(|| {
        KeyError(format!("{} is no key file (64 hexadecimal digits); 'unisockets key new' makes one", path.display()))
    })?;
    Ok((seed, file))
}

/// Writes bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Makes a key file, refusing to overwrite one.
///
/// # Errors
/// [`KeyError`] if it exists or cannot be written.
pub fn create_key(path: &Path) -> Result<KeyPair, KeyError> {
    if path.exists() {
        return Err(KeyError(format!("{} exists; choose another file, a key is never overwritten", path.display())));
    }
    open_key(path).map(|(seed, _)| KeyPair::from_seed(&seed))
}

/// Reads a key file without locking it.
///
/// # Errors
/// [`KeyError`] if it is not there or no key file.
pub fn read_key(path: &Path) -> Result<KeyPair, KeyError> {
    let text =
        fs::read_to_string(path).map_err(|error| KeyError(format!("cannot read {}: {error}", path.display())))?;
    let seed = unhex(text.trim()).ok_or_else(|| KeyError(format!("{} is no key file", path.display())))?;
    Ok(KeyPair::from_seed(&seed))
}
